//! A request that this library owns, and the responses to it.

use crate::error::{Fault, check};
use crate::ffi::{self, DataType};
use crate::request::Tensors;
use crate::text::c_string;
use std::ptr;
use std::time::Duration;

/// Nanoseconds of the clock that the server's statistics are in.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists everywhere, and `time` is there to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An owned request: it has exactly one last response, at the latest when this is dropped, and is released then.
pub struct Owned {
    instance: *mut ffi::Instance,
    request: *mut ffi::Request,
    /// Null where the server made none.
    factory: *mut ffi::Factory,
    /// Whether its last response was sent.
    answered: bool,
    /// When it was queued, or came.
    queued: u64,
    /// When it had its slot.
    begun: Option<u64>,
    /// When its last response was sent, at first when it came.
    last: u64,
}

// SAFETY: the server's requests and factories belong to whoever has them, on any thread.
unsafe impl Send for Owned {}

/// One output of a response.
pub struct Output {
    pub name: &'static str,
    pub data_type: DataType,
    pub elements: usize,
    pub bytes: Vec<u8>,
}

impl Output {
    fn one(name: &'static str, data_type: DataType, bytes: Vec<u8>) -> Self {
        Self {
            name,
            data_type,
            elements: 1,
            bytes,
        }
    }

    /// One string.
    pub fn text(name: &'static str, text: &str) -> Self {
        let mut bytes = Vec::with_capacity(4 + text.len());
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        Self::one(name, DataType::BYTES, bytes)
    }

    /// Token ids.
    pub fn tokens(name: &'static str, tokens: &[u32]) -> Self {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
        Self {
            elements: tokens.len(),
            ..Self::one(name, DataType::INT32, bytes.collect())
        }
    }

    /// One count.
    pub fn count(name: &'static str, count: usize) -> Self {
        Self::one(name, DataType::UINT32, (count as u32).to_le_bytes().into())
    }

    /// One number.
    pub fn number(name: &'static str, number: f32) -> Self {
        Self::one(name, DataType::FP32, number.to_le_bytes().into())
    }
}

impl Owned {
    /// Takes a request of `instance`'s.
    ///
    /// # Safety
    /// Both are the server's, and the request is the caller's to give. The instance outlives its requests.
    pub unsafe fn take(instance: *mut ffi::Instance, request: *mut ffi::Request) -> Self {
        let mut factory = ptr::null_mut();
        // SAFETY: the caller's contract.
        let made = unsafe { check(ffi::TRITONBACKEND_ResponseFactoryNew(&mut factory, request)) };
        if let Err(fault) = made {
            tracing::error!(%fault, "a request cannot be answered");
            factory = ptr::null_mut();
        }
        let now = now();
        Self {
            instance,
            request,
            factory,
            answered: false,
            queued: now,
            begun: None,
            last: now,
        }
    }

    /// What came.
    pub fn tensors(&self) -> Tensors {
        // SAFETY: the request is released when this is dropped.
        unsafe { Tensors::new(self.request) }
    }

    /// Whether it can be answered, without which it is only to be dropped.
    pub fn is_answerable(&self) -> bool {
        !self.factory.is_null()
    }

    /// Whether nobody waits for it any more.
    pub fn is_cancelled(&self) -> bool {
        let mut cancelled = false;
        // SAFETY: the factory lives as long as this.
        let asked = unsafe {
            check(ffi::TRITONBACKEND_ResponseFactoryIsCancelled(
                self.factory,
                &mut cancelled,
            ))
        };
        cancelled || asked.is_err()
    }

    /// It is queued now.
    pub fn queued(&mut self) {
        self.queued = now();
    }

    /// It had its slot so long after that.
    pub fn began(&mut self, after: Duration) {
        self.begun = Some(self.queued.saturating_add(after.as_nanos() as u64));
    }

    /// Sends a response, the last one if `last`.
    ///
    /// # Errors
    /// The server has no room for it, or does not take it.
    pub fn send(&mut self, outputs: &[Output], last: bool) -> Result<(), Fault> {
        let started = now();
        let response = self.response()?;
        for output in outputs {
            // SAFETY: the response is this function's until it is sent or deleted.
            if let Err(fault) = unsafe { fill(response, output) } {
                // SAFETY: as above.
                let deleted = unsafe { check(ffi::TRITONBACKEND_ResponseDelete(response)) };
                drop(deleted);
                return Err(fault);
            }
        }
        self.report_response(Some(started), ptr::null_mut());
        if last {
            self.finish(true);
        }
        let flags = if last { ffi::RESPONSE_FINAL } else { 0 };
        // SAFETY: as above; it is the server's from here on.
        unsafe {
            check(ffi::TRITONBACKEND_ResponseSend(
                response,
                flags,
                ptr::null_mut(),
            ))
        }
    }

    /// Says that all responses were sent.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn end(&mut self) -> Result<(), Fault> {
        self.finish(true);
        let flags = ffi::RESPONSE_FINAL;
        // SAFETY: the factory lives as long as this.
        unsafe {
            check(ffi::TRITONBACKEND_ResponseFactorySendFlags(
                self.factory,
                flags,
            ))
        }
    }

    /// Sends an error as the last response.
    pub fn fail(&mut self, fault: &Fault) {
        if self.answered {
            return;
        }
        if !self.is_answerable() {
            return self.finish(false);
        }
        let response = self.response();
        let error = fault.status();
        self.report_response(None, error);
        self.finish(false);
        // SAFETY: the response is the server's from here on, the error ours. Where there is no response, the flag
        // says at least that none follows.
        let sent = unsafe {
            let sent = match response {
                Ok(response) => {
                    ffi::TRITONBACKEND_ResponseSend(response, ffi::RESPONSE_FINAL, error)
                }
                Err(_) => {
                    ffi::TRITONBACKEND_ResponseFactorySendFlags(self.factory, ffi::RESPONSE_FINAL)
                }
            };
            ffi::TRITONSERVER_ErrorDelete(error);
            check(sent)
        };
        if let Err(fault) = sent {
            tracing::warn!(%fault, "an error was not sent");
        }
    }

    fn response(&self) -> Result<*mut ffi::Response, Fault> {
        let mut response = ptr::null_mut();
        // SAFETY: the factory lives as long as this.
        unsafe {
            check(ffi::TRITONBACKEND_ResponseNewFromFactory(
                &mut response,
                self.factory,
            ))?;
        }
        Ok(response)
    }

    /// Counts a response in the server's statistics: one whose outputs were begun then, or an error.
    fn report_response(&mut self, output: Option<u64>, error: ffi::Status) {
        let (start, end) = (self.last, now());
        self.last = end;
        let mut statistics = ptr::null_mut();
        // SAFETY: instance, factory and error live as long as the calls; the statistics are deleted here.
        let reported = unsafe {
            check(ffi::TRITONBACKEND_ModelInstanceResponseStatisticsNew(
                &mut statistics,
            ))
            .and_then(|()| {
                use ffi as f;
                let all = [
                    f::TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(
                        statistics,
                        self.instance,
                    ),
                    f::TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(
                        statistics,
                        self.factory,
                    ),
                    f::TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(
                        statistics, start,
                    ),
                    f::TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(
                        statistics,
                        output.unwrap_or(end).max(start),
                    ),
                    f::TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(statistics, end),
                    f::TRITONBACKEND_ModelInstanceResponseStatisticsSetError(statistics, error),
                    f::TRITONBACKEND_ModelInstanceReportResponseStatistics(statistics),
                ];
                let first = all.map(|status| check(status));
                first.into_iter().collect::<Result<(), _>>()
            })
        };
        // SAFETY: as above.
        let deleted = unsafe {
            check(ffi::TRITONBACKEND_ModelInstanceResponseStatisticsDelete(
                statistics,
            ))
        };
        if let Err(fault) = reported.and(deleted) {
            tracing::debug!(%fault, "a response is not in the statistics");
        }
    }

    /// Counts the request in the server's statistics, before its last response is sent.
    fn finish(&mut self, success: bool) {
        self.answered = true;
        let end = now();
        // One that never had a slot only waited.
        let begun = self.begun.unwrap_or(end).min(end);
        // SAFETY: both live until the request is released, below.
        let reported = unsafe {
            check(ffi::TRITONBACKEND_ModelInstanceReportStatistics(
                self.instance,
                self.request,
                success,
                begun,
                begun,
                end,
                end,
            ))
            .and_then(|()| match success {
                true => check(ffi::TRITONBACKEND_ModelInstanceReportBatchStatistics(
                    self.instance,
                    1,
                    begun,
                    begun,
                    end,
                    end,
                )),
                false => Ok(()),
            })
        };
        if let Err(fault) = reported {
            tracing::debug!(%fault, "a request is not in the statistics");
        }
    }
}

/// Writes an output into a response.
///
/// # Safety
/// `response` is one of the server's that was not sent.
unsafe fn fill(response: *mut ffi::Response, output: &Output) -> Result<(), Fault> {
    let name = c_string(output.name);
    let shape = [output.elements as i64];
    let (mut made, mut buffer) = (ptr::null_mut(), ptr::null_mut());
    let (mut memory, mut memory_id) = (ffi::MEMORY_CPU, 0);
    // SAFETY: name and shape live as long as the calls; the buffer has as many bytes as were asked for, and may be
    // null where these are none.
    unsafe {
        check(ffi::TRITONBACKEND_ResponseOutput(
            response,
            &mut made,
            name.as_ptr(),
            output.data_type,
            shape.as_ptr(),
            1,
        ))?;
        check(ffi::TRITONBACKEND_OutputBuffer(
            made,
            &mut buffer,
            output.bytes.len() as u64,
            &mut memory,
            &mut memory_id,
        ))?;
        if memory == ffi::MEMORY_GPU {
            return Err(Fault::invalid(format!(
                "`{}`: expected room in the CPU's memory, found it in a GPU's; ask for outputs in system memory",
                output.name
            )));
        }
        if !output.bytes.is_empty() {
            ptr::copy_nonoverlapping(output.bytes.as_ptr(), buffer.cast(), output.bytes.len());
        }
    }
    Ok(())
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.fail(&match std::thread::panicking() {
            true => Fault::defect("the server's log says which"),
            false => Fault::new(
                ffi::Code::Unavailable,
                "the scheduler ended before the answer did",
            ),
        });
        // SAFETY: nothing uses them any more; both were made for this.
        let released = unsafe {
            if !self.factory.is_null() {
                let deleted = check(ffi::TRITONBACKEND_ResponseFactoryDelete(self.factory));
                if let Err(fault) = deleted {
                    tracing::warn!(%fault, "a response factory is left");
                }
            }
            check(ffi::TRITONBACKEND_RequestRelease(
                self.request,
                ffi::RELEASE_ALL,
            ))
        };
        if let Err(fault) = released {
            tracing::error!(%fault, "a request is not released");
        }
    }
}
