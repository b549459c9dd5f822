//! Truncations and flipped bits of tiny files, all of them.

use super::super::Checkpoint;
use super::super::testing::{View, f32_safetensors, pth, state_pickle};
use super::{Values, f32s, values};

fn tiny_pth() -> Vec<u8> {
    let whole = View::contiguous("FloatStorage", "0", &[5, 8]);
    let transposed = View {
        shape: vec![8, 5],
        strides: vec![1, 8],
        ..whole.clone()
    };
    let pickle = state_pickle(&[
        ("a.weight", whole),
        ("a.transposed", transposed),
        (
            "b.weight",
            View::contiguous("BFloat16Storage", "1", &[3, 4]),
        ),
        ("c.weight", View::contiguous("HalfStorage", "2", &[7])),
    ]);
    let storages = [
        ("0", f32s((0..40).map(|i| i as f32 * 0.1))),
        ("1", (0..24).collect()),
        ("2", (0..14).collect()),
    ];
    pth(pickle, &storages)
}

fn read(name: &str, bytes: Vec<u8>) -> Option<Values> {
    let checkpoint = Checkpoint::from_bytes(name, bytes).ok()?;
    values(&checkpoint, 2).ok()
}

#[test]
fn no_truncation_of_a_file_is_accepted() {
    for (name, bytes) in [
        ("x.pth", tiny_pth()),
        (
            "x.safetensors",
            f32_safetensors(&[("a", &[4, 5]), ("b", &[3])]),
        ),
    ] {
        assert!(read(name, bytes.clone()).is_some());
        for len in 0..bytes.len() {
            assert!(
                read(name, bytes[..len].to_vec()).is_none(),
                "{name} cut to {len} bytes was accepted"
            );
        }
        for extra in 1..40 {
            let longer = [bytes.as_slice(), &vec![0; extra]].concat();
            assert!(
                read(name, longer).is_none(),
                "{name} with {extra} more bytes was accepted"
            );
        }
    }
}

#[test]
fn no_flipped_bit_of_a_pth_changes_a_tensor() {
    let bytes = tiny_pth();
    let original = read("x.pth", bytes.clone()).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for at in 0..bytes.len() {
        for flip in (0..8).map(|bit| 1u8 << bit).chain([0xff]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            match read("x.pth", damaged) {
                None => refused += 1,
                Some(found) => {
                    assert_eq!(found, original, "byte {at} flipped by {flip:#04x}");
                    harmless += 1;
                }
            }
        }
    }
    println!(
        "{} bytes: {refused} flips refused, {harmless} changed nothing",
        bytes.len()
    );
    assert!(
        refused > 4 * harmless,
        "{refused} refused, {harmless} harmless"
    );
}

#[test]
fn no_changed_byte_of_a_safetensors_header_panics() {
    let bytes = f32_safetensors(&[("a", &[4, 5]), ("b", &[3])]);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut accepted = 0;
    for at in 0..header {
        for value in 0..=255u8 {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            accepted += usize::from(read("x.safetensors", damaged).is_some());
        }
    }
    // At least the unchanged ones; without checksums a changed name is a name.
    assert!(accepted >= header);
}
