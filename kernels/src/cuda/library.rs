//! Tables of functions from libraries that may not be there.
//!
//! cudarc gives the types. Its own loader is not used: it panics where a library or a function is
//! missing, looks for a fixed list of file names, and gives errors as Rust enums that a newer
//! driver's numbers do not fit.

use libloading::Library;
use std::error::Error;
use std::mem::ManuallyDrop;
use std::path::Path;

/// Loads a library for the rest of the process, or what the loader finds under a bare name. The
/// error is the loader's words.
///
/// # Safety
/// The library's initialisers are safe to run here.
pub(super) unsafe fn open(file: &Path) -> Result<ManuallyDrop<Library>, String> {
    // SAFETY: the caller's contract.
    let library = unsafe { Library::new(file) };
    library.map(ManuallyDrop::new).map_err(|error| {
        let words = error.source().map(ToString::to_string);
        words.unwrap_or_else(|| format!("{}: {error}", file.display()))
    })
}

/// Declares a struct of function pointers under their C names, and `from_library` that fills it.
/// Every function returns its status as a number.
macro_rules! function_table {
    (
        $(#[$attributes:meta])*
        pub(super) struct $table:ident {
            $( fn $name:ident($($argument:ty),* $(,)?) $(-> $result:ty)?; )*
        }
    ) => {
        $(#[$attributes])*
        #[allow(non_snake_case)]
        pub(super) struct $table {
            $( pub $name: function_table!(@pointer ($($argument),*) $($result)?), )*
        }

        impl $table {
            /// Looks up every function; the name of the first that is not there otherwise.
            ///
            /// # Safety
            /// The library has functions of these names with these signatures and is never
            /// unloaded.
            unsafe fn from_library(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the caller's contract.
                    $( $name: *unsafe { library.get(stringify!($name)) }
                        .map_err(|_| stringify!($name))?, )*
                })
            }
        }
    };
    (@pointer ($($argument:ty),*)) => { unsafe extern "C" fn($($argument),*) -> u32 };
    (@pointer ($($argument:ty),*) $result:ty) => { unsafe extern "C" fn($($argument),*) -> $result };
}

pub(super) use function_table;
