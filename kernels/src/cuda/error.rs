//! What can go wrong between here and a GPU.

/// Why CUDA work did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No CUDA driver.
    #[error(
        "no CUDA driver: {library} does not load ({message}); install NVIDIA's driver, or run on \
         the CPU"
    )]
    DriverMissing {
        /// The file that the loader was asked for.
        library: &'static str,
        /// The loader's words.
        message: String,
    },
    /// A driver from before CUDA 12.0.
    #[error(
        "the CUDA driver is too old: expected one for CUDA 12.0 or newer, found {found}; update \
         NVIDIA's driver, or run on the CPU"
    )]
    DriverTooOld {
        /// Its version, or the function it lacks.
        found: String,
    },
    /// No such GPU.
    #[error(
        "no CUDA device {ordinal}: the driver shows {count}; check `nvidia-smi` and \
         CUDA_VISIBLE_DEVICES, or run on the CPU"
    )]
    NoDevice {
        /// Number of the device.
        ordinal: i32,
        /// How many there are.
        count: i32,
    },
    /// The calling thread has no current CUDA context.
    #[error(
        "the calling thread has no current CUDA context; call from a thread of the CUDA execution \
         provider, or open a device first"
    )]
    NoContext,
    /// A call to the driver failed.
    #[error("{call} failed: {name} ({code}): {words}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// Name of the error.
        name: String,
        /// Its number.
        code: u32,
        /// The driver's words.
        words: String,
    },
    /// A kernel was not launched.
    #[error(
        "kernel {kernel} was not launched on a grid of {grid:?} blocks of {block} threads with \
         {shared_bytes} bytes of shared memory: {name} ({code}): {words}"
    )]
    Launch {
        /// Its name.
        kernel: &'static str,
        /// Blocks in x, y and z.
        grid: [u32; 3],
        /// Threads of a block.
        block: u32,
        /// Dynamic shared memory of a block.
        shared_bytes: u32,
        /// Name of the driver's error.
        name: String,
        /// Its number.
        code: u32,
        /// The driver's words.
        words: String,
    },
    /// No compilation unit has the kernel.
    #[error("no CUDA kernel `{kernel}` in this build")]
    KernelUnknown {
        /// The name asked for.
        kernel: &'static str,
    },
    /// The unit was loaded and does not have the kernel.
    #[error("{unit}: expected a kernel `{kernel}` in it, found none of that name")]
    KernelMissing {
        /// File of the unit.
        unit: &'static str,
        /// The name asked for.
        kernel: &'static str,
    },
    /// The unit is for other GPUs.
    #[error("{unit}: expected a GPU of compute capability {expected}, found {found}")]
    WrongArchitecture {
        /// File of the unit.
        unit: &'static str,
        /// What it is for.
        expected: String,
        /// What the device has.
        found: String,
    },
    /// Nothing that the device could run.
    #[error("{unit}: no code for compute capability {architecture}: {embedded}, and {nvrtc}")]
    NoCode {
        /// File of the unit.
        unit: &'static str,
        /// Compute capability of the device.
        architecture: String,
        /// What is embedded, or why that did not load.
        embedded: String,
        /// Why it cannot be compiled here.
        nvrtc: Box<Self>,
    },
    /// No NVRTC.
    #[error(
        "NVRTC, which would compile it here, does not load ({looked}); install it beside ONNX \
         Runtime (`pip install {package}`), or name its file in RATPLUS_NVRTC"
    )]
    NvrtcMissing {
        /// Where it was looked for, and what the loader said.
        looked: String,
        /// The Python package that has it.
        package: String,
    },
    /// NVRTC failed.
    #[error("{unit}: {compiler} did not compile it: {call}: {words}\n{log}")]
    Compile {
        /// File of the unit.
        unit: &'static str,
        /// NVRTC's version, and what it compiled for.
        compiler: String,
        /// NVRTC's function.
        call: &'static str,
        /// Its error in words.
        words: String,
        /// What the compiler said.
        log: String,
    },
    /// Something that the kernels cannot do.
    #[error("{what}: expected {expected}, found {found}")]
    Unsupported {
        /// The tensor, attribute or size.
        what: String,
        /// What can be done.
        expected: String,
        /// What was asked for.
        found: String,
    },
}
