//! Sessions and what they are bound to.

use super::memory::{Buffer, Memory};
use super::value::{Value, Weights};
use ort::session::builder::SessionBuilder;
use ort::session::{IoBinding, Session};
use ort::{AsPointer, ortsys};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// What a session is built from.
pub(crate) enum Model {
    /// A file; its external data is read beside it.
    File(PathBuf),
    /// What such a file holds, and the folder of its external data.
    Content(Vec<u8>, PathBuf),
}

/// A built engine.
pub(crate) struct OrtSession {
    session: Session,
    _weights: Arc<Weights>,
}

impl OrtSession {
    /// Builds a session that reads `weights` where they lie.
    pub fn new(
        mut builder: SessionBuilder,
        weights: &Arc<Weights>,
        model: &Model,
    ) -> ort::Result<Self> {
        for (name, value) in &weights.tensors {
            builder = builder.with_initializer(name, value.clone())?;
        }
        let session = match model {
            Model::File(path) => builder.commit_from_file(path)?,
            Model::Content(model, folder) => {
                // `with_config_entry` takes no path that is not UTF-8.
                let key = c"session.model_external_initializers_file_folder_path".as_ptr();
                let folder = CString::new(folder.as_os_str().as_bytes())?;
                // SAFETY: the options are live; ORT copies both strings.
                ortsys![unsafe AddSessionConfigEntry(builder.ptr_mut(), key, folder.as_ptr())?];
                builder.commit_from_memory(model)?
            }
        };
        Ok(Self {
            session,
            _weights: weights.clone(),
        })
    }

    /// Runs with everything bound by `binding`, whose buffers are `memory`'s.
    pub fn run(&mut self, binding: &Binding, memory: &mut Memory) -> ort::Result<()> {
        let bound = binding.buffers.as_ref();
        if binding.session != self.session.ptr()
            || bound.is_none_or(|buffers| !Arc::ptr_eq(buffers, memory.shared()))
        {
            let message = "the binding belongs to another session or other buffers";
            return Err(ort::Error::new(message));
        }
        self.session.run_binding(&binding.binding).map(drop)
    }

    /// Stops profiling: the file holds the profile then.
    pub fn end_profiling(&mut self) -> ort::Result<()> {
        self.session.end_profiling().map(drop)
    }
}

/// Buffers for every input and output of a session, bound once.
pub(crate) struct Binding {
    binding: IoBinding,
    session: *const ort_sys::OrtSession,
    buffers: Option<Arc<[Buffer]>>,
    // The binding keeps the session.
    _weights: Arc<Weights>,
}

// SAFETY: the session's address is only compared.
unsafe impl Send for Binding {}
// SAFETY: through a shared reference it can only be run, which takes `&mut Memory`: one run at a
// time.
unsafe impl Sync for Binding {}

impl Binding {
    /// An empty binding for `session`, which has to be the one it is run with.
    pub fn new(session: &OrtSession) -> ort::Result<Self> {
        Ok(Self {
            binding: session.session.create_binding()?,
            session: session.session.ptr(),
            buffers: None,
            _weights: session._weights.clone(),
        })
    }

    fn keep(&mut self, value: &Value) -> ort::Result<()> {
        let buffers = self.buffers.get_or_insert_with(|| value.buffers.clone());
        match Arc::ptr_eq(buffers, &value.buffers) {
            true => Ok(()),
            false => Err(ort::Error::new("the value is not in the same buffers")),
        }
    }

    pub fn input(&mut self, name: &str, value: &Value) -> ort::Result<()> {
        self.keep(value)?;
        self.binding.bind_input(name, &value.value)
    }

    /// Binds past `bind_output`: of the outputs it is told, `run_binding` makes new objects each time.
    pub fn output(&mut self, name: &str, value: &Value) -> ort::Result<()> {
        self.keep(value)?;
        let name = CString::new(name)?;
        let (binding, value) = (self.binding.ptr_mut(), value.value.ptr());
        // SAFETY: all are live; ORT copies the name and what the value says of its memory, which
        // `keep` keeps.
        ortsys![unsafe BindOutput(binding, name.as_ptr(), value)?];
        Ok(())
    }
}
