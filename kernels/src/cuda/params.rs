//! What kernels are launched with: the twins of the structs of kernels/cuda, which describe them.

use super::DevicePtr;

/// Declares the Rust twin of a struct of kernels/cuda, and the test of this name that compares the
/// two.
macro_rules! twin {
    ($test:ident: $(#[$attribute:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        #[cfg(test)]
        #[test]
        fn $test() {
            let fields = [$((
                stringify!($field),
                std::mem::offset_of!($name, $field),
                size_of::<$type>(),
            )),*];
            $crate::cuda::layout::assert_twin(stringify!($name), &fields, size_of::<$name>());
        }
    };
}
pub(super) use twin;

twin! {
    lengths_are_the_kernels:
    #[derive(Default)]
    Lengths {
        past_length: DevicePtr,
        seq_length: DevicePtr,
        error: DevicePtr,
        node: u32,
        seq_len: i32,
        max_seq_len: i64,
    }
}
