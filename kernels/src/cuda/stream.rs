//! Streams, events and captured graphs of our own. Where a framework drives, its stream is used.

use super::device::Device;
use super::error::CudaError;
use cudarc::driver::sys::{CUevent, CUgraph, CUgraphExec, CUstream, CUstreamCaptureMode};
use std::ffi::c_void;

/// A stream of the caller's: null is the legacy default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub *mut c_void);

impl Stream {
    /// The legacy default stream.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());
}

// SAFETY: the pointer is an opaque handle; the driver takes it from every thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A stream that does not wait for the legacy default stream, destroyed when dropped.
#[derive(Debug)]
pub struct OwnedStream {
    device: &'static Device,
    raw: CUstream,
}

// SAFETY: the driver takes the handle from every thread.
unsafe impl Send for OwnedStream {}
// SAFETY: as above.
unsafe impl Sync for OwnedStream {}

/// CU_STREAM_NON_BLOCKING
const NON_BLOCKING: u32 = 1;

impl OwnedStream {
    /// The handle, for as long as `self` lives.
    pub fn stream(&self) -> Stream {
        Stream(self.raw.cast())
    }

    /// Waits for all work that it has.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is live.
        unsafe { self.device.synchronize_stream(self.stream()) }
    }

    /// Puts the mark of `event` behind the work that the stream has by now.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: the stream is live.
        unsafe { event.record(self.stream()) }
    }

    /// Starts to record what is enqueued on this stream instead of running it.
    pub fn capture(&self) -> Result<Capture<'_>, CudaError> {
        let _entered = self.device.enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let call = self.device.driver.call.cuStreamBeginCapture_v2;
        // SAFETY: the stream is live.
        let code = unsafe { call(self.raw, mode) };
        self.device.driver.check("cuStreamBeginCapture", code)?;
        Ok(Capture {
            stream: self,
            open: true,
        })
    }
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: the stream is destroyed once; the driver lets its work end first.
            unsafe { (self.device.driver.call.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A recording under way; dropped, it is thrown away.
#[derive(Debug)]
pub struct Capture<'a> {
    stream: &'a OwnedStream,
    open: bool,
}

impl Capture<'_> {
    /// Ends the recording and makes it ready to run.
    pub fn end(mut self) -> Result<Graph, CudaError> {
        let device = self.stream.device;
        let _entered = device.enter()?;
        let recorded = self.close()?;
        let mut graph = Graph {
            device,
            recorded,
            ready: std::ptr::null_mut(),
        };
        let call = device.driver.call.cuGraphInstantiateWithFlags;
        // SAFETY: the graph is live and the pointer valid for the write.
        let code = unsafe { call(&raw mut graph.ready, graph.recorded, 0) };
        device.driver.check("cuGraphInstantiate", code)?;
        Ok(graph)
    }

    fn close(&mut self) -> Result<CUgraph, CudaError> {
        self.open = false;
        let driver = self.stream.device.driver;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is live and records; the pointer is valid for the write.
        let code = unsafe { (driver.call.cuStreamEndCapture)(self.stream.raw, &raw mut graph) };
        driver.check("cuStreamEndCapture", code).map(|()| graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let device = self.stream.device;
        if let (Ok(_entered), Ok(graph)) = (device.enter(), self.close())
            && !graph.is_null()
        {
            // SAFETY: the graph is destroyed once.
            unsafe { (device.driver.call.cuGraphDestroy)(graph) };
        }
    }
}

/// Recorded work that can run again and again, destroyed when dropped.
#[derive(Debug)]
pub struct Graph {
    device: &'static Device,
    recorded: CUgraph,
    ready: CUgraphExec,
}

// SAFETY: the driver takes the handles from every thread, and `launch` needs `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues the recorded work.
    ///
    /// # Safety
    /// Every address that was recorded is still as the recorded calls demand.
    pub unsafe fn launch(&mut self, stream: Stream) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: the graph is live; the rest is the caller's contract.
        let code = unsafe { (self.device.driver.call.cuGraphLaunch)(self.ready, stream.0.cast()) };
        self.device.driver.check("cuGraphLaunch", code)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            let call = &self.device.driver.call;
            // SAFETY: each is destroyed once; running work holds what it needs.
            unsafe {
                if !self.ready.is_null() {
                    (call.cuGraphExecDestroy)(self.ready);
                }
                (call.cuGraphDestroy)(self.recorded);
            }
        }
    }
}

/// A mark in a stream that knows when it was passed, destroyed when dropped.
#[derive(Debug)]
pub struct Event {
    device: &'static Device,
    raw: CUevent,
}

// SAFETY: the driver takes the handle from every thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Puts the mark behind the work that the stream has by now.
    ///
    /// # Safety
    /// `stream` is live.
    pub unsafe fn record(&self, stream: Stream) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: the event is live; the rest is the caller's contract.
        let code = unsafe { (self.device.driver.call.cuEventRecord)(self.raw, stream.0.cast()) };
        self.device.driver.check("cuEventRecord", code)
    }

    /// Waits until the stream has passed the mark.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: the event is live.
        let code = unsafe { (self.device.driver.call.cuEventSynchronize)(self.raw) };
        self.device.driver.check("cuEventSynchronize", code)
    }

    /// Seconds from this mark to `end`; both have been passed.
    pub fn elapsed(&self, end: &Self) -> Result<f64, CudaError> {
        let _entered = self.device.enter()?;
        let mut milliseconds = 0.0;
        let call = self.device.driver.call.cuEventElapsedTime;
        // SAFETY: the events are live and the pointer valid for the write.
        let code = unsafe { call(&raw mut milliseconds, self.raw, end.raw) };
        self.device.driver.check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: the event is destroyed once.
            unsafe { (self.device.driver.call.cuEventDestroy_v2)(self.raw) };
        }
    }
}

impl Device {
    /// A stream of our own.
    pub fn stream(&'static self) -> Result<OwnedStream, CudaError> {
        let _entered = self.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (self.driver.call.cuStreamCreate)(&raw mut raw, NON_BLOCKING) };
        self.driver.check("cuStreamCreate", code)?;
        Ok(OwnedStream { device: self, raw })
    }

    /// An event with a clock.
    pub fn event(&'static self) -> Result<Event, CudaError> {
        let _entered = self.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the write.
        let code = unsafe { (self.driver.call.cuEventCreate)(&raw mut raw, 0) };
        self.driver.check("cuEventCreate", code)?;
        Ok(Event { device: self, raw })
    }

    /// Waits for all work of a stream.
    ///
    /// # Safety
    /// `stream` is live.
    pub unsafe fn synchronize_stream(&self, stream: Stream) -> Result<(), CudaError> {
        let _entered = self.enter()?;
        // SAFETY: the caller's contract.
        let code = unsafe { (self.driver.call.cuStreamSynchronize)(stream.0.cast()) };
        self.driver.check("cuStreamSynchronize", code)
    }
}
