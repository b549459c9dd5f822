//! Products of bf16 by AMX tiles.
//!
//! A tile is 16 rows of 64 bytes. `tdpbf16ps` adds to a tile of 16 x 16 f32 the product of 16 rows
//! of 32 bf16 with 16 pairs of rows of 16 bf16, each pair interleaved.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Whether the processor has tiles of bf16.
pub(crate) fn is_present() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        // Leaf 7 exists on every processor with AVX2, which is asked for first.
        let leaf = __cpuid_count(7, 0);
        std::arch::is_x86_feature_detected!("avx2") && leaf.edx & BF16 != 0 && leaf.edx & TILES != 0
    })
}

/// Whether this process may use tiles.
pub(crate) fn is_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_GET_XCOMP_PERM: libc::c_int = 0x1022;
        const XTILEDATA: u64 = 1 << 18;
        let mut permitted = 0u64;
        // SAFETY: writes one u64, and changes nothing.
        let status = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_GET_XCOMP_PERM,
                &raw mut permitted,
            )
        };
        status == 0 && permitted & XTILEDATA != 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// The processor's description of its tiles' shapes.
#[repr(C, align(64))]
struct Config([u8; 64]);

impl Config {
    /// 16 rows in every tile: of 64 bytes in tiles 4 and 5, and of `columns` f32 in the others.
    fn new(columns: usize) -> Self {
        let mut config = [0; 64];
        config[0] = 1;
        for tile in 0..8 {
            config[16 + 2 * tile] = if matches!(tile, 4 | 5) {
                64
            } else {
                4 * columns as u8
            };
            config[48 + tile] = 16;
        }
        Self(config)
    }
}

/// Eight tile registers. 0 to 3 are sums, 4 and 5 left and 6 and 7 right operands: [`Registers::dot`]
/// asks for a sum as wide as the right operand.
pub(crate) trait Registers {
    /// Tiles of 16 rows: 4 and 5 of 32 bf16, the others of `columns` f32 or pairs of bf16, at most 16.
    ///
    /// # Safety
    /// The machine has them and the process may use them.
    unsafe fn new(columns: usize) -> Self;

    /// `TILE = 0`
    ///
    /// # Safety
    /// Nothing more than [`Registers::new`] asks for.
    unsafe fn zero<const TILE: usize>(&mut self);

    /// Loads rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// They are readable, as wide as the tile.
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize);

    /// Stores rows `stride` bytes apart.
    ///
    /// # Safety
    /// They are writable, as wide as the tile.
    unsafe fn store<const TILE: usize>(&mut self, to: *mut u8, stride: usize);

    /// `SUM += LEFT RIGHT`
    ///
    /// # Safety
    /// Nothing more than [`Registers::new`] asks for.
    unsafe fn dot<const SUM: usize, const LEFT: usize, const RIGHT: usize>(&mut self);
}

/// An instruction that changes tiles.
macro_rules! change_tiles {
    ($instruction:literal, [$($operands:tt)*], $memory:ident) => {
        asm!(
            $instruction,
            $($operands)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options($memory, nostack, preserves_flags),
        )
    };
}

/// Tiles of this thread; as they were before once dropped. They keep their values from one statement
/// of assembly to the next: compilers use none.
pub(crate) struct Tiles {
    before: Config,
}

impl Registers for Tiles {
    unsafe fn new(columns: usize) -> Self {
        let mut before = Config([0; 64]);
        let config = Config::new(columns);
        // SAFETY: both are 64 bytes.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack, preserves_flags));
            change_tiles!("ldtilecfg [{from}]", [from = in(reg) &raw const config,], readonly);
        }
        Self { before }
    }

    #[inline(always)]
    unsafe fn zero<const TILE: usize>(&mut self) {
        // SAFETY: changes a tile alone.
        unsafe {
            change_tiles!("tilezero tmm{tile}", [tile = const TILE,], nomem);
        }
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: reads what the caller vouches for.
        unsafe {
            change_tiles!(
                "tileloadd tmm{tile}, [{from} + 1*{stride}]",
                [tile = const TILE, from = in(reg) from, stride = in(reg) stride,],
                readonly
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: writes what the caller vouches for.
        unsafe {
            asm!(
                "tilestored [{to} + 1*{stride}], tmm{tile}",
                tile = const TILE,
                to = in(reg) to,
                stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    unsafe fn dot<const SUM: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
        // SAFETY: changes a tile alone.
        unsafe {
            change_tiles!(
                "tdpbf16ps tmm{sum}, tmm{left}, tmm{right}",
                [sum = const SUM, left = const LEFT, right = const RIGHT,],
                nomem
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` vouched for AMX; without a palette tiles are in their first state.
        unsafe {
            if self.before.0[0] == 0 {
                change_tiles!("tilerelease", [], nomem);
            } else {
                change_tiles!("ldtilecfg [{from}]", [from = in(reg) &raw const self.before,], readonly);
            }
        }
    }
}

/// `c += a b`, or `c = a b`, for 32 rows and 32 columns.
pub(crate) struct Product {
    /// `[32, 32 steps]` bf16.
    pub a: *const u8,
    /// Bytes between its rows.
    pub a_stride: usize,
    /// `[16 steps, 32]` pairs of bf16.
    pub b: *const u8,
    /// Bytes between its rows.
    pub b_stride: usize,
    /// `[32, 32]` f32.
    pub c: *mut u8,
    /// Bytes between its rows.
    pub c_stride: usize,
    /// 32 bf16 deep each, one at least.
    pub steps: usize,
    /// Whether the old values count.
    pub adds: bool,
}

/// Runs `p`.
///
/// # Safety
/// The matrices are readable, `c` is writable and apart, and this thread has [`Tiles`] of 16 columns.
#[inline(always)]
pub(crate) unsafe fn product(p: &Product) {
    // SAFETY: offsets are within 32 rows, and 64 bytes a step.
    unsafe {
        asm!(
            "test {adds}, {adds}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {c_stride}]",
            "tileloadd tmm1, [{c} + {c_stride} + 64]",
            "tileloadd tmm2, [{c_low} + {c_stride}]",
            "tileloadd tmm3, [{c_low} + {c_stride} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {a_stride}]",
            "tileloadd tmm6, [{b} + {b_stride}]",
            "tileloadd tmm5, [{a_low} + {a_stride}]",
            "tileloadd tmm7, [{b} + {b_stride} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {a_low}, 64",
            "add {b}, {b_step}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {c_stride}], tmm0",
            "tilestored [{c} + {c_stride} + 64], tmm1",
            "tilestored [{c_low} + {c_stride}], tmm2",
            "tilestored [{c_low} + {c_stride} + 64], tmm3",
            adds = in(reg) usize::from(p.adds),
            a = inout(reg) p.a => _,
            a_low = inout(reg) p.a.add(16 * p.a_stride) => _,
            a_stride = in(reg) p.a_stride,
            b = inout(reg) p.b => _,
            b_stride = in(reg) p.b_stride,
            b_step = in(reg) 16 * p.b_stride,
            c = in(reg) p.c,
            c_low = in(reg) p.c.add(16 * p.c_stride),
            c_stride = in(reg) p.c_stride,
            steps = inout(reg) p.steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
