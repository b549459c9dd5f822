//! What only the released RAT+ code and its checkpoints know: how files wrap and name weights,
//! what a training run records beside them, how its directories spell a pattern.

mod names;
mod paths;
mod run;

pub(crate) use names::{
    STATE_DICT_KEYS, STATE_OF_A_MODULE, ignored, is_extra_state, names_a_weight,
};
pub(crate) use paths::{PathPattern, path_pattern};
pub(crate) use run::training_run;

use crate::checkpoint::{Checkpoint, CheckpointError, ReadOptions, Reader, Tensor};
use ratplus_graphs::model::Weight;
use ratplus_graphs::none_wrong;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const LAYERS: &str = "backbone.layers.";

/// Sizes of the released models: layers and width. All have heads of 128 channels.
pub(crate) const RELEASED: [(&str, usize, usize); 3] =
    [("1.5B", 24, 2048), ("2.6B", 28, 2560), ("7.6B", 32, 4096)];
const RELEASED_D_HEAD: usize = 128;
/// LLaMA 2's.
const RELEASED_VOCABULARY: usize = 32000;

/// The released model of this name, in any case, with dense attention.
pub(crate) fn released(name: &str) -> Option<ModelSpec> {
    let found = RELEASED
        .iter()
        .find(|(known, ..)| known.eq_ignore_ascii_case(name));
    found.map(|&(_, num_layers, d_model)| ModelSpec {
        vocab_size: RELEASED_VOCABULARY,
        d_model,
        num_layers,
        d_head: RELEASED_D_HEAD,
        d_ffn: 4 * d_model,
        tie_embedding: true,
        patterns: vec![LayerPatterns::Uniform(Pattern::DENSE); num_layers],
        ..ModelSpec::default()
    })
}

/// What `tie_embedding` makes one matrix.
const TIED: [Weight; 2] = [Weight::Embedding, Weight::LmHead];

/// The name that a tied matrix of that name may have instead.
fn partner(name: &str) -> Option<String> {
    let names = TIED.map(Weight::name);
    let at = names.iter().position(|known| known == name)?;
    Some(names[1 - at].clone())
}

/// Where older files keep the forget gate: the fifth block of `in_proj`.
fn gate_name(layer: usize) -> String {
    format!("{LAYERS}{layer}.seq_layer.fgate_proj.weight")
}

/// The name of the released size with these layers and width, and its head size.
pub(crate) fn released_size(num_layers: usize, d_model: usize) -> Option<(&'static str, usize)> {
    RELEASED
        .iter()
        .find(|&&(_, layers, width)| (layers, width) == (num_layers, d_model))
        .map(|&(name, _, _)| (name, RELEASED_D_HEAD))
}

/// One weight of the model: one or more tensors of the checkpoint, stacked along rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its place in the model.
    pub weight: Weight,
    /// Shape once stacked.
    pub shape: Vec<usize>,
    /// From top to bottom.
    pub parts: Vec<Tensor>,
}

impl Source {
    /// Number of rows: the first dimension.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(Tensor::rows).sum()
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        self.parts.first().map_or(0, Tensor::row_len)
    }

    /// Writes `rows` to `out` as little-endian elements of type `dtype`, row-major; see
    /// [`Reader::read_rows`].
    ///
    /// # Errors
    /// As [`Reader::read_rows`].
    pub fn read_rows(
        &self,
        reader: &mut Reader<'_>,
        rows: Range<usize>,
        dtype: ElementType,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let row_bytes = self.row_len().saturating_mul(dtype.size());
        if rows.end > self.rows() || rows.len().checked_mul(row_bytes) != Some(out.len()) {
            return Err(CheckpointError::Request {
                tensor: self.weight.name(),
                problem: format!(
                    "rows {rows:?} of {} with {row_bytes} bytes each do not fit a buffer of {} bytes",
                    self.rows(),
                    out.len()
                ),
            });
        }
        let (mut top, mut rest) = (0, out);
        for part in &self.parts {
            let bottom = top + part.rows();
            let (start, end) = (rows.start.clamp(top, bottom), rows.end.clamp(top, bottom));
            let (head, tail) = rest.split_at_mut((end - start) * row_bytes);
            if start < end {
                reader.read_rows(part, start - top..end - top, dtype, head)?;
            }
            (top, rest) = (bottom, tail);
        }
        Ok(())
    }

    /// Whether every element of `other` is the same number, bit for bit, once in f32.
    ///
    /// # Errors
    /// As [`Reader::read_rows`].
    pub(crate) fn same_elements(
        &self,
        other: &Self,
        checkpoint: &Checkpoint,
    ) -> Result<bool, CheckpointError> {
        if self.shape != other.shape {
            return Ok(false);
        }
        let place = |source: &Self| {
            let parts = source.parts.iter();
            let place = |part: &Tensor| part.clone().renamed(String::new());
            parts.map(place).collect::<Vec<_>>()
        };
        if place(self) == place(other) {
            return Ok(true);
        }
        let mut readers = [0; 2].map(|_| {
            let options = ReadOptions {
                allow_nonfinite: true,
            };
            checkpoint.reader(options)
        });
        let row_bytes = self.row_len() * ElementType::F32.size();
        let at_once = (COMPARED_BYTES / row_bytes.max(1)).max(1);
        let mut buffers = [(); 2].map(|()| vec![0; at_once.min(self.rows()) * row_bytes]);
        for start in (0..self.rows()).step_by(at_once) {
            let rows = start..self.rows().min(start + at_once);
            for ((source, reader), buffer) in
                [self, other].iter().zip(&mut readers).zip(&mut buffers)
            {
                let out = &mut buffer[..rows.len() * row_bytes];
                source.read_rows(reader, rows.clone(), ElementType::F32, out)?;
            }
            let [ours, theirs] = &buffers;
            if ours[..rows.len() * row_bytes] != theirs[..rows.len() * row_bytes] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands the whole weight to `sink` in order, as many rows at a time as `buffer` holds.
    ///
    /// # Errors
    /// As [`Reader::read_rows`], a buffer shorter than one row, and what `sink` returns.
    pub fn stream<E: From<CheckpointError>>(
        &self,
        reader: &mut Reader<'_>,
        dtype: ElementType,
        buffer: &mut [u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let row_bytes = self.row_len() * dtype.size();
        let at_once = buffer.len() / row_bytes.max(1);
        if at_once == 0 {
            return Err(E::from(CheckpointError::Request {
                tensor: self.weight.name(),
                problem: format!("one row has {row_bytes} bytes, the buffer {}", buffer.len()),
            }));
        }
        for start in (0..self.rows()).step_by(at_once) {
            let rows = start..self.rows().min(start + at_once);
            let out = &mut buffer[..rows.len() * row_bytes];
            self.read_rows(reader, rows, dtype, out)?;
            sink(out)?;
        }
        Ok(())
    }
}

/// Bytes of f32 that are compared at a time.
const COMPARED_BYTES: usize = 1 << 20;

/// What to say of keys and values in heads that nobody told of, where `is` them: with a forget gate in `in_proj`, and
/// how many heads.
fn grouped_hint(spec: &ModelSpec, gate: bool, is: impl Fn(bool, Option<usize>) -> bool) -> String {
    let heads = spec.num_heads();
    let fits = |gate: bool| {
        let mut fewer = (1..heads).filter(|&kv| heads.is_multiple_of(kv));
        fewer.find(|&kv| is(gate, Some(kv)))
    };
    match (fits(gate), fits(false)) {
        (Some(kv), _) => format!(" (as of `num_kv_heads: {kv}` in a `config_file`)"),
        (None, Some(kv)) => {
            format!(" (as of `num_kv_heads: {kv}` and `recurrence: false` in a `config_file`)")
        }
        (None, None) => String::new(),
    }
}

/// Sizes that weights have by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub vocab_size: usize,
    pub d_model: usize,
    pub num_layers: usize,
    pub d_ffn: usize,
    pub recurrence: bool,
}

/// A checkpoint's tensors by their names in an uncompiled model.
pub(crate) struct StateDict<'a> {
    tensors: BTreeMap<String, &'a Tensor>,
    /// Names that two tensors have.
    pub problems: Vec<String>,
    /// What was taken off the names and what was left out; one sentence each.
    pub notes: Vec<String>,
    /// Who says that head and embedding are one matrix, which may have either name.
    pub tied_by: Option<String>,
}

impl<'a> StateDict<'a> {
    fn get(&self, name: &str) -> Option<&'a Tensor> {
        let other = || {
            self.tensors
                .get(&partner(name)?)
                .filter(|_| self.tied_by.is_some())
        };
        self.tensors.get(name).or_else(other).copied()
    }

    /// Which of head and embedding is not there by its own name.
    pub(crate) fn missing_of_tied(&self) -> Option<Weight> {
        let missing = |weight: &Weight| !self.tensors.contains_key(&weight.name());
        TIED.into_iter().find(missing)
    }

    /// What to do where only one of head and embedding is there.
    fn tie_hint(&self, name: &str) -> String {
        let there = partner(name).filter(|other| self.tensors.contains_key(other));
        there.map_or(String::new(), |other| {
            format!(
                "; where it is tied to `{other}`, give a `config_file` with \"tie_embedding\": true"
            )
        })
    }

    /// Layers that any tensor names.
    fn layers(&self) -> BTreeSet<usize> {
        self.tensors
            .range(LAYERS.to_owned()..)
            .map_while(|(name, _)| name.strip_prefix(LAYERS))
            .filter_map(|rest| rest.split('.').next()?.parse().ok())
            .collect()
    }

    /// What is wrong where a model is said to have another number of layers than the weights.
    pub(crate) fn other_layers(&self, num_layers: usize) -> Option<String> {
        let found = self.layers().len();
        (found != num_layers).then(|| {
            format!("num_layers: expected {num_layers}, found {found} layers in the checkpoint")
        })
    }

    /// Number of layers, where they are numbered from 0 without gaps.
    pub(crate) fn num_layers(&self) -> Result<usize, String> {
        let layers = self.layers();
        match layers.iter().enumerate().find(|&(at, &layer)| at != layer) {
            None => Ok(layers.len()),
            Some((missing, _)) => Err(format!(
                "`{LAYERS}{missing}`: expected layers numbered from 0, found none of that number among {}",
                layers.len()
            )),
        }
    }

    /// Whether the gate is kept apart from `in_proj`.
    pub(crate) fn separate_gate(&self) -> bool {
        self.tensors.contains_key(&gate_name(0))
    }

    /// Reads the sizes off the weights. `d_kv` is what is said of the width of keys, for a `d_model` and a number of
    /// layers; all heads' where nothing is.
    pub(crate) fn sizes(
        &self,
        d_kv: impl FnOnce(usize, usize) -> Option<usize>,
    ) -> Result<Sizes, Vec<String>> {
        let mut problems = Vec::new();
        let mut matrix = |weight: Weight| {
            let name = weight.name();
            match self.get(&name).map(|tensor| tensor.shape()) {
                Some(&[rows, columns]) => Some((rows, columns)),
                Some(shape) => {
                    problems.push(format!("`{name}`: expected a matrix, found {shape:?}"));
                    None
                }
                None => {
                    let hint = self.tie_hint(&name);
                    problems.push(format!("`{name}`: expected a matrix, found nothing{hint}"));
                    None
                }
            }
        };
        let embedding = matrix(Weight::Embedding);
        let in_proj = matrix(Weight::InProj(0));
        let fc1 = matrix(Weight::Fc1(0));
        let num_layers = self.num_layers().map_err(|problem| problems.push(problem));
        let (Some((vocab_size, d_model)), Some((rows, _)), Some((d_ffn, _)), Ok(num_layers)) =
            (embedding, in_proj, fc1, num_layers)
        else {
            let names: Vec<_> = self.tensors.keys().take(5).cloned().collect();
            problems.push(format!(
                "not the weights of a RAT+ model: the checkpoint has {} tensors, the first of them `{}`",
                self.tensors.len(),
                names.join("`, `")
            ));
            return Err(problems);
        };
        let d_kv = d_kv(d_model, num_layers).unwrap_or(d_model);
        let gateless = d_model.saturating_add(d_kv).saturating_mul(2);
        Ok(Sizes {
            vocab_size,
            d_model,
            num_layers,
            d_ffn,
            recurrence: self.separate_gate() || rows != gateless,
        })
    }

    /// The tensors of every weight of `spec`, or everything in which the two differ.
    pub(crate) fn sources(&self, spec: &ModelSpec) -> Result<Vec<Source>, Vec<String>> {
        let mut problems = Vec::new();
        let mut used = BTreeSet::new();
        let found = self.layers().len();
        problems.extend(self.other_layers(spec.num_layers));
        // Layers that only one side has are one line above, not seven each.
        let common = ModelSpec {
            num_layers: spec.num_layers.min(found),
            ..spec.clone()
        };
        let mut sources = Vec::new();
        for weight in Weight::all(&common) {
            let shape = weight.shape(spec);
            let mut wanted = vec![(weight.name(), shape.clone())];
            if let Weight::InProj(layer) = weight
                && spec.recurrence
                && self.tensors.contains_key(&gate_name(layer))
            {
                wanted[0].1[0] -= spec.d_kv();
                wanted.push((gate_name(layer), vec![spec.d_kv(), spec.d_model]));
            }
            let mut parts = Vec::new();
            for (name, shape) in wanted {
                match self.get(&name) {
                    None => problems.push(format!(
                        "`{name}`: expected {shape:?}, found nothing{}",
                        self.tie_hint(&name)
                    )),
                    Some(tensor) => {
                        if tensor.shape() != shape {
                            problems.push(format!(
                                "`{name}`: expected {shape:?}, found {:?}{}",
                                tensor.shape(),
                                self.hint(weight, tensor, spec)
                            ));
                        }
                        if !tensor.dtype().is_weight() {
                            problems.push(format!(
                                "`{name}`: expected f32, f16, bf16 or f64, found {}",
                                tensor.dtype()
                            ));
                        }
                        parts.push(tensor.clone());
                    }
                }
                used.insert(name);
            }
            sources.push(Source {
                weight,
                shape,
                parts,
            });
        }
        for (name, tensor) in &self.tensors {
            let layer = name
                .strip_prefix(LAYERS)
                .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            let counted =
                found != spec.num_layers && layer.is_some_and(|layer| layer >= spec.num_layers);
            if !used.contains(name) && !counted {
                problems.push(format!(
                    "`{name}`: expected no such tensor, found {} {:?}",
                    tensor.dtype(),
                    tensor.shape()
                ));
            }
        }
        none_wrong(problems)?;
        Ok(sources)
    }

    fn hint(&self, weight: Weight, tensor: &Tensor, spec: &ModelSpec) -> String {
        let Weight::InProj(layer) = weight else {
            return String::new();
        };
        let is = |recurrence: bool, num_kv_heads: Option<usize>| {
            let other = ModelSpec {
                recurrence,
                num_kv_heads,
                ..spec.clone()
            };
            tensor.shape() == weight.shape(&other)
        };
        let apart = self.tensors.contains_key(&gate_name(layer));
        let same = spec.num_kv_heads;
        let hint = match spec.recurrence {
            true if apart && is(true, same) => "; `fgate_proj` would be a second forget gate",
            true if !apart && is(false, same) => {
                " (no forget gate: attention only, `recurrence: false`)"
            }
            false if is(true, same) => " (it has a forget gate: `recurrence: true`)",
            _ => return grouped_hint(spec, spec.recurrence && !apart, is),
        };
        hint.into()
    }
}
