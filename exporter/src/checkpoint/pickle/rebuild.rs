//! Calls, storages and tensors. A call makes a description or an inert value; nothing is called.

use super::super::error::show;
use super::super::tensor::StoredType;
use super::machine::{Machine, Outcome};
use super::names::{hostile, plain_tensor};
use super::{Foreign, Global, Id, Node, Object, Rebuild, StorageRef, TensorRef};

const MAX_DIMS: usize = 16;

/// Most attributes of a tensor, all of which are looked at.
const MAX_ATTRIBUTES: usize = 64;

const WRONG_ARGUMENTS: &str = "a tensor with the wrong number of arguments";

impl Machine<'_> {
    /// The name that `id` is or was made by, where it means nothing here.
    fn cause(&self, id: Id) -> Option<Id> {
        match *self.node(id) {
            Node::Foreign(_) => Some(id),
            Node::Object(object) => object.cause,
            _ => None,
        }
    }

    fn object(&mut self, cause: Option<Id>) -> Outcome<()> {
        self.add(Node::Object(Object::by(cause)))
    }

    fn foreign(&self, id: Id) -> Option<Foreign> {
        match *self.node(self.cause(id)?) {
            Node::Foreign(foreign) => Some(foreign),
            _ => None,
        }
    }

    /// The first name that means nothing here among what made `ids`.
    fn first_cause<const N: usize>(&self, ids: [Id; N]) -> Option<Id> {
        ids.into_iter().find_map(|id| self.cause(id))
    }

    /// `("storage", type, key, location, elements)`.
    pub(super) fn storage(&mut self, id: Id) -> Outcome<()> {
        let problem = "a persistent id that does not describe a storage";
        let Node::Tuple(parts) = self.node(id) else {
            return Err(problem.into());
        };
        let &[tag, kind, key, location, numel] = parts.as_slice() else {
            return Err(problem.into());
        };
        let (&Node::Str(tag), &Node::Str(key), Node::Str(_), &Node::Int(numel)) = (
            self.node(tag),
            self.node(key),
            self.node(location),
            self.node(numel),
        ) else {
            return Err(problem.into());
        };
        let numel = u64::try_from(numel).map_err(|_| problem)?;
        if self.text(tag) != "storage" {
            return Err(problem.into());
        }
        let dtype = match *self.node(kind) {
            Node::Global(Global::Storage(dtype)) => dtype,
            // Elements of an unknown type: nothing that is known can be a view of them.
            Node::Foreign(_) => return self.object(Some(kind)),
            _ => return Err(problem.into()),
        };
        let storage = StorageRef { dtype, key, numel };
        let name = self.text(key).as_bytes();
        let index = *self.storage_keys.entry(name).or_insert(self.storages.len());
        match self.storages.get(index) {
            None => self.storages.push(storage),
            Some(known) if (known.dtype, known.numel) == (dtype, numel) => {}
            Some(_) => {
                return Err(format!("storage `{}` is described in two ways", show(name)));
            }
        }
        self.add(Node::Storage(index))
    }

    /// NEWOBJ_EX: only types that mean nothing here are made with keywords.
    pub(super) fn reduce_with_keywords(&mut self, called: Id, arguments: Id) -> Outcome<()> {
        match self.node(called) {
            Node::Foreign(_) | Node::Object(_) => self.reduce(called, arguments, true),
            Node::Global(Global::Data) => self.object(None),
            _ => Err("NEWOBJ_EX of something that takes no keywords".into()),
        }
    }

    pub(super) fn reduce(&mut self, called: Id, arguments: Id, new: bool) -> Outcome<()> {
        let list = match self.node(arguments) {
            Node::Tuple(list) => list.as_slice(),
            Node::Object(_) if self.cause(called).is_some() => &[],
            _ => return Err("arguments that are not a tuple".into()),
        };
        match *self.node(called) {
            Node::Foreign(_) => self.object(Some(called)),
            Node::Object(object) => self.object(object.cause),
            Node::Global(Global::Rebuild(_)) if new => Err("NEWOBJ of a function".into()),
            Node::Global(Global::Rebuild(rebuild)) => self.rebuild(rebuild, arguments),
            Node::Global(Global::Attribute) => match *list {
                [of, name] => self.name_within(of, name),
                _ => Err(self.refused_attribute()),
            },
            Node::Global(Global::Mapping) if list.is_empty() => self.add(Node::Dict(Vec::new())),
            Node::Global(Global::Mapping) => Err("a dict built from arguments".into()),
            Node::Global(Global::Data) => self.object(None),
            Node::Global(Global::Storage(_) | Global::Dtype(_)) => Err("a call of a type".into()),
            _ => Err("a call of something that is not a name".into()),
        }
    }

    fn refused_attribute(&self) -> String {
        match self.attribute {
            Some(attribute) => self.refused(attribute),
            None => "`getattr` of something that is not a name".into(),
        }
    }

    /// `getattr(of, name)`, which names what is inside a type or belongs to an object.
    fn name_within(&mut self, of: Id, name: Id) -> Outcome<()> {
        let (Some(outer), &Node::Str(name)) = (self.foreign(of), self.node(name)) else {
            return Err(self.refused_attribute());
        };
        let (module, outer, name) = (
            self.text(outer.module),
            self.text(outer.name),
            self.text(name),
        );
        if hostile(module, &format!("{outer}.{name}")) {
            return Err(self.refused_attribute());
        }
        self.attribute = None;
        self.object(self.cause(of))
    }

    fn rebuild(&mut self, rebuild: Rebuild, arguments: Id) -> Outcome<()> {
        let Node::Tuple(list) = self.node(arguments) else {
            return Err(WRONG_ARGUMENTS.into());
        };
        match (rebuild, list.as_slice()) {
            // (storage, offset, size, stride, requires_grad, hooks[, metadata])
            (Rebuild::Tensor, &[a, b, c, d, _, _]) => self.tensor([a, b, c, d], None, None),
            (Rebuild::Tensor, &[a, b, c, d, _, _, metadata]) => {
                self.tensor([a, b, c, d], None, Some(metadata))
            }
            // The same with the type before the metadata.
            (Rebuild::TensorWithDtype, &[a, b, c, d, _, _, dtype]) => {
                self.tensor([a, b, c, d], Some(dtype), None)
            }
            (Rebuild::TensorWithDtype, &[a, b, c, d, _, _, dtype, metadata]) => {
                self.tensor([a, b, c, d], Some(dtype), Some(metadata))
            }
            (Rebuild::Tensor | Rebuild::TensorWithDtype, _) => Err(WRONG_ARGUMENTS.into()),
            // (data, requires_grad, hooks[, attributes])
            (Rebuild::Parameter, &[data, _, _]) => self.parameter(data, None),
            (Rebuild::ParameterWithState, &[data, _, _, state]) => {
                self.parameter(data, Some(state))
            }
            (Rebuild::Parameter | Rebuild::ParameterWithState, _) => {
                Err("a parameter without a tensor".into())
            }
            (Rebuild::FromType, &[function, kind, arguments, state]) => {
                self.with_attributes(function, kind, arguments, state)
            }
            (Rebuild::FromType, _) => Err(WRONG_ARGUMENTS.into()),
        }
    }

    fn parameter(&mut self, data: Id, state: Option<Id>) -> Outcome<()> {
        if let Some(state) = state {
            self.check_attributes(state)?;
        }
        match self.node(data) {
            Node::Tensor(_) => self.push(data),
            _ => match self.cause(data) {
                Some(cause) => self.object(Some(cause)),
                None => Err("a parameter without a tensor".into()),
            },
        }
    }

    fn with_attributes(&mut self, function: Id, kind: Id, arguments: Id, state: Id) -> Outcome<()> {
        if let Some(cause) = self.cause(function) {
            return self.object(Some(cause));
        }
        let &Node::Global(Global::Rebuild(rebuild)) = self.node(function) else {
            return Err("a tensor made by something that makes none".into());
        };
        if rebuild == Rebuild::FromType {
            return Err("a tensor whose attributes have attributes".into());
        }
        let &Node::Foreign(Foreign { module, name, .. }) = self.node(kind) else {
            return match self.cause(kind) {
                Some(cause) => self.object(Some(cause)),
                None => Err("a tensor whose type is not a name".into()),
            };
        };
        // Another type may compute its values from more than this tensor.
        if !plain_tensor(self.text(module), self.text(name)) {
            return self.object(Some(kind));
        }
        self.check_attributes(state)?;
        self.rebuild(rebuild, arguments)
    }

    /// Attributes of a tensor do not change its values, but for `data`.
    fn check_attributes(&self, state: Id) -> Outcome<()> {
        let parts = match self.node(state) {
            // Of the instance and of slots.
            Node::Tuple(parts) if parts.len() <= 2 => parts.clone(),
            _ => vec![state],
        };
        for part in parts {
            let Node::Dict(entries) = self.node(part) else {
                continue;
            };
            if entries.len() > MAX_ATTRIBUTES {
                return Err(format!(
                    "a tensor with more than {MAX_ATTRIBUTES} attributes"
                ));
            }
            if entries.iter().any(|&(key, _)| self.is_str(key, &["data"])) {
                return Err("a tensor whose attributes replace its data".into());
            }
        }
        Ok(())
    }

    fn is_str(&self, id: Id, texts: &[&str]) -> bool {
        matches!(*self.node(id), Node::Str(span) if texts.contains(&self.text(span)))
    }

    fn dims(&self, id: Id, what: &str) -> Outcome<Vec<u64>> {
        let Node::Tuple(items) = self.node(id) else {
            return Err(format!("a tensor whose {what} is not a tuple"));
        };
        if items.len() > MAX_DIMS {
            return Err(format!("a tensor of {} dimensions", items.len()));
        }
        let dim = |&id: &Id| match self.node(id) {
            Node::Int(value) => u64::try_from(*value)
                .map_err(|_| format!("a tensor whose {what} has a negative entry {value}")),
            _ => Err(format!("a tensor whose {what} is not made of integers")),
        };
        items.iter().map(dim).collect()
    }

    fn tensor(
        &mut self,
        arguments: [Id; 4],
        dtype: Option<Id>,
        metadata: Option<Id>,
    ) -> Outcome<()> {
        let [storage, offset, shape, strides] = arguments;
        let cause = self
            .first_cause(arguments)
            .or_else(|| dtype.and_then(|dtype| self.cause(dtype)));
        if let Some(cause) = cause {
            return self.object(Some(cause));
        }
        let dtype = match dtype.map(|dtype| self.node(dtype)) {
            None => None,
            Some(&Node::Global(Global::Dtype(dtype))) => Some(dtype),
            Some(_) => return Err("a tensor whose type is not a torch dtype".into()),
        };
        let lazy = self.is_lazy(metadata)?;
        let &Node::Storage(storage) = self.node(storage) else {
            return Err("a tensor without a storage".into());
        };
        let &Node::Int(offset) = self.node(offset) else {
            return Err("a tensor whose offset is not an integer".into());
        };
        let offset = u64::try_from(offset)
            .map_err(|_| format!("a tensor whose offset is negative: {offset}"))?;
        let (shape, strides) = (self.dims(shape, "size")?, self.dims(strides, "stride")?);
        if shape.len() != strides.len() {
            return Err(format!(
                "a tensor with {} dimensions and {} strides",
                shape.len(),
                strides.len()
            ));
        }
        let dtype: StoredType = dtype.unwrap_or(self.storages[storage].dtype);
        self.tensors.push(TensorRef {
            storage,
            dtype,
            offset,
            shape,
            strides,
            lazy,
        });
        self.add(Node::Tensor(self.tensors.len() - 1))
    }

    /// Whether PyTorch noted that the values are those of the storage negated or conjugated.
    fn is_lazy(&self, metadata: Option<Id>) -> Outcome<bool> {
        let Some(Node::Dict(entries)) = metadata.map(|metadata| self.node(metadata)) else {
            return Ok(false);
        };
        if entries.len() > MAX_ATTRIBUTES {
            return Err(format!(
                "a tensor with more than {MAX_ATTRIBUTES} attributes"
            ));
        }
        Ok(entries.iter().any(|&(key, value)| {
            self.is_str(key, &["neg", "conj"]) && !matches!(self.node(value), Node::Bool(false))
        }))
    }
}
