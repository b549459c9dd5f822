//! What the operators are tried on: every instruction set of this CPU, and the CUDA kernels on
//! the emulator.

use super::gpu::{self, Schedule};
use super::{Real, pools};
#[cfg(target_arch = "x86_64")]
use crate::attention::{bf16_products::multiplies_bf16, tile::WORTH};
use crate::cuda::{AttentionMethod, AttentionShape, ScanMethod};
use crate::{AttentionParams, Isa, ParallelFor, ScanParams};
use crate::{dilated_attention_on, recurrence_scan_on};
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::ElementType;

/// One implementation of the operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// The CPU kernels.
    Cpu(Isa),
    /// The CUDA kernels; `None` is what the shape chooses.
    Gpu {
        scan: Option<ScanMethod>,
        attention: Option<AttentionMethod>,
    },
}

/// One of the ways a machine may go about a call; all give the same bits.
pub(crate) enum Way {
    Pool(Box<dyn ParallelFor>),
    Schedule(Schedule),
}

impl Machine {
    /// The CUDA kernels as the shape chooses them.
    pub(crate) const GPU: Self = Self::Gpu {
        scan: None,
        attention: None,
    };

    /// The CUDA kernels with this attention.
    pub(crate) fn attending(method: AttentionMethod) -> Self {
        Self::Gpu {
            scan: None,
            attention: Some(method),
        }
    }

    /// The CUDA kernels with this scan.
    pub(crate) fn scanning(method: ScanMethod) -> Self {
        Self::Gpu {
            scan: Some(method),
            attention: None,
        }
    }

    /// Every CPU instruction set.
    pub(crate) fn cpus() -> Vec<Self> {
        super::isas().into_iter().map(Self::Cpu).collect()
    }

    /// Whether the way number `index` is tried with outputs of their own and in place. The
    /// emulator is slow: its ways take turns.
    pub(crate) fn aliasings(self, index: usize) -> &'static [bool] {
        match self {
            Self::Cpu(_) => &[true, false],
            Self::Gpu { .. } if index.is_multiple_of(2) => &[true],
            Self::Gpu { .. } => &[false],
        }
    }

    /// Whether the attention multiplies rounded queries and weights.
    pub(crate) fn rounds_operands(
        self,
        layout: &CacheLayout,
        element: ElementType,
        head_dim: usize,
        seq_len: usize,
    ) -> bool {
        let attention = match self {
            Self::Gpu { attention, .. } => attention,
            #[cfg(target_arch = "x86_64")]
            Self::Cpu(isa) => {
                return element == ElementType::BF16
                    && seq_len >= WORTH
                    && multiplies_bf16(isa, head_dim);
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Cpu(_) => return false,
        };
        let shape = AttentionShape {
            element,
            batch: 1,
            seq_len,
            group: 1,
            head_dim,
            scale: 1.0,
        };
        !matches!(
            attention.unwrap_or(shape.method(layout)),
            AttentionMethod::Decode | AttentionMethod::Any
        )
    }

    /// The ways to compare, the plainest first.
    pub(crate) fn ways(self) -> Vec<(String, Way)> {
        match self {
            Self::Cpu(_) => pools()
                .into_iter()
                .map(|(name, pool)| (name.into(), Way::Pool(pool)))
                .collect(),
            Self::Gpu { .. } => Schedule::ALL
                .into_iter()
                .map(|schedule| (format!("{schedule:?}"), Way::Schedule(schedule)))
                .collect(),
        }
    }

    /// Runs the attention.
    ///
    /// # Safety
    /// As [`dilated_attention_on`].
    pub(crate) unsafe fn attention<T: Real>(self, way: &Way, params: &AttentionParams<T>) {
        match (self, way) {
            // SAFETY: the caller's contract.
            (Self::Cpu(isa), Way::Pool(pool)) => unsafe {
                dilated_attention_on(isa, params, &**pool).unwrap();
            },
            // SAFETY: the caller's contract, whatever the machine.
            (Self::Gpu { attention, .. }, Way::Schedule(schedule)) => unsafe {
                gpu::attention(params, attention, *schedule);
            },
            _ => unreachable!("a way of another machine"),
        }
    }

    /// Runs the scan.
    ///
    /// # Safety
    /// As [`recurrence_scan_on`].
    pub(crate) unsafe fn scan<T: Real>(self, way: &Way, params: &ScanParams<T>) {
        match (self, way) {
            // SAFETY: the caller's contract.
            (Self::Cpu(isa), Way::Pool(pool)) => unsafe {
                recurrence_scan_on(isa, params, &**pool).unwrap();
            },
            // SAFETY: the caller's contract, whatever the machine.
            (Self::Gpu { scan, .. }, Way::Schedule(schedule)) => unsafe {
                gpu::scan(params, scan, *schedule);
            },
            _ => unreachable!("a way of another machine"),
        }
    }
}
