//! libc's calls on files, each counted before it goes to the kernel or to libc.

use libc::c_int;

fn fail(error: c_int) -> c_int {
    // SAFETY: libc's own variable of this thread.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// A function of libc itself, behind this library's of the same name.
macro_rules! next {
    ($name:literal as $type:ty) => {{
        // SAFETY: the name ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, concat!($name, "\0").as_ptr().cast()) };
        // SAFETY: libc declares the function so; every libc has it.
        unsafe { std::mem::transmute::<*mut libc::c_void, $type>(found) }
    }};
}

/// Returns where the call has to fail.
macro_rules! unless_fails {
    ($verdict:expr) => {
        if let Verdict::Fail(error) = $verdict {
            return fail(error);
        }
    };
    ($verdict:expr, $value:expr) => {
        if let Verdict::Fail(error) = $verdict {
            fail(error);
            return $value;
        }
    };
}

mod data;
mod names;
