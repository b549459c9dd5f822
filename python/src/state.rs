//! What a sequence leaves in its slot, in Python and in files.

use crate::errors::input;
use numpy::ndarray::ArrayView1;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use ratplus_graphs::ElementType;
use ratplus_runtime::backend::{SlotState, StateBuffer};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

const PAST_LENGTH: &str = "past_length";
const FINGERPRINT: &str = "fingerprint";
/// Names in the order of the session, which safetensors does not keep.
const NAMES: &str = "names";

/// A tensor of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tensor {
    name: String,
    dtype: ElementType,
    shape: Vec<usize>,
}

/// How states of a session lie in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Vec<Tensor>);

impl Layout {
    pub fn new(buffers: &[StateBuffer]) -> Self {
        let tensors = buffers.iter().map(|buffer| Tensor {
            name: buffer.past.clone(),
            dtype: buffer.tensor.dtype,
            // Of one slot.
            shape: [&[1], &buffer.tensor.shape[1..]].concat(),
        });
        Self(tensors.collect())
    }
}

/// A sequence after a number of tokens, which others can go on from.
#[pyclass(frozen, module = "ratplus")]
pub struct State {
    layout: Arc<Layout>,
    state: Arc<SlotState>,
}

impl State {
    pub fn new(layout: Arc<Layout>, state: Arc<SlotState>) -> Self {
        Self { layout, state }
    }

    /// What a request takes.
    pub fn shared(&self) -> Arc<SlotState> {
        self.state.clone()
    }

    /// Every tensor and its bytes; some backends keep f32 where the package says another type.
    fn tensors_and_bytes(&self) -> impl Iterator<Item = (&Tensor, ElementType, &[u8])> {
        let tensors = self.layout.0.iter().zip(&self.state.tensors);
        tensors.map(|(tensor, bytes)| {
            let count = tensor.shape.iter().product::<usize>();
            let dtype = match bytes.len() == count * tensor.dtype.size() {
                true => tensor.dtype,
                false => ElementType::F32,
            };
            (tensor, dtype, bytes.as_slice())
        })
    }
}

#[pymethods]
impl State {
    /// Tokens that the sequence has.
    #[getter]
    fn past_length(&self) -> usize {
        self.state.past_length
    }

    /// What a package has to have for its models to take it.
    #[getter]
    fn fingerprint(&self) -> &str {
        &self.state.fingerprint
    }

    /// Bytes of all tensors.
    #[getter]
    fn nbytes(&self) -> usize {
        self.state.bytes()
    }

    /// Name, type, shape and bytes of every tensor, the bytes where they lie.
    fn views<'py>(this: &Bound<'py, Self>) -> Vec<View<'py>> {
        let views = this.get().tensors_and_bytes();
        views
            .map(|(tensor, dtype, bytes)| {
                let view = borrowed(bytes, this);
                (
                    tensor.name.clone(),
                    dtype.to_string(),
                    tensor.shape.clone(),
                    view,
                )
            })
            .collect()
    }

    /// Writes it as safetensors.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let views = self.tensors_and_bytes().map(|(tensor, dtype, bytes)| {
                let dtype = match dtype {
                    ElementType::F16 => Dtype::F16,
                    ElementType::BF16 => Dtype::BF16,
                    _ => Dtype::F32,
                };
                let view = TensorView::new(dtype, tensor.shape.clone(), bytes);
                Ok((tensor.name.as_str(), view.map_err(input)?))
            });
            let views = views.collect::<PyResult<Vec<_>>>()?;
            let names: Vec<_> = views.iter().map(|(name, _)| *name).collect();
            let about = HashMap::from([
                (PAST_LENGTH.into(), self.state.past_length.to_string()),
                (FINGERPRINT.into(), self.state.fingerprint.clone()),
                (NAMES.into(), names.join(" ")),
            ]);
            let failed = |error| input(format!("{}: {error}", path.display()));
            serialize_to_file(views, Some(about), &path).map_err(failed)
        })
    }

    /// Reads what `save` has written.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| {
            let failed = |error: &dyn std::fmt::Display| {
                input(format!(
                    "{}: expected a saved state: {error}",
                    path.display()
                ))
            };
            let file = std::fs::read(&path).map_err(|error| failed(&error))?;
            let (_, header) = SafeTensors::read_metadata(&file).map_err(|error| failed(&error))?;
            let stored = SafeTensors::deserialize(&file).map_err(|error| failed(&error))?;
            let about = header.metadata().clone().unwrap_or_default();
            let said = |name| {
                let missing = || failed(&format!("`{name}`: not in its metadata"));
                about.get(name).ok_or_else(missing)
            };
            let past_length = said(PAST_LENGTH)?.parse();
            let past_length =
                past_length.map_err(|error| failed(&format!("`{PAST_LENGTH}`: {error}")))?;
            let (mut layout, mut tensors) = (Vec::new(), Vec::new());
            for name in said(NAMES)?.split_whitespace() {
                let view = stored.tensor(name).map_err(|error| failed(&error))?;
                let dtype = match view.dtype() {
                    Dtype::F32 => ElementType::F32,
                    Dtype::F16 => ElementType::F16,
                    Dtype::BF16 => ElementType::BF16,
                    other => {
                        let text = format!("`{name}`: expected F32, F16 or BF16, found {other:?}");
                        return Err(failed(&text));
                    }
                };
                layout.push(Tensor {
                    name: name.into(),
                    dtype,
                    shape: view.shape().to_vec(),
                });
                tensors.push(view.data().to_vec());
            }
            let state = SlotState {
                fingerprint: said(FINGERPRINT)?.clone(),
                past_length,
                tensors,
            };
            Ok(Self::new(Arc::new(Layout(layout)), Arc::new(state)))
        })
    }

    fn __repr__(&self) -> String {
        format!(
            "State(past_length={}, nbytes={})",
            self.state.past_length,
            self.state.bytes()
        )
    }
}

/// Name, type, shape and bytes.
type View<'py> = (String, String, Vec<usize>, Bound<'py, PyArray1<u8>>);

/// Bytes of a state as an array that cannot be written to.
#[allow(unsafe_code)]
fn borrowed<'py>(bytes: &[u8], state: &Bound<'py, State>) -> Bound<'py, PyArray1<u8>> {
    // SAFETY: the array keeps `state` alive, which owns the bytes and never changes or frees them before it goes;
    // and nothing writes to the array.
    let array =
        unsafe { PyArray1::borrow_from_array(&ArrayView1::from(bytes), state.clone().into_any()) };
    drop(array.readwrite().make_nonwriteable());
    array
}
