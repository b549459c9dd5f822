//! Whole archives.

use ratplus_exporter::checkpoint::testing::{View, ZipEnd, pth, records, state_pickle, zip};

pub const WORDS: &[&[u8]] = super::zip::WORDS;

pub fn seeds() -> Vec<Vec<u8>> {
    let storage = |len: usize| (0..len).map(|i| i as u8 % 63).collect::<Vec<u8>>();
    let matrix = View::contiguous("FloatStorage", "0", &[2, 3]);
    let turned = View {
        shape: vec![3, 2],
        strides: vec![1, 3],
        ..matrix.clone()
    };
    let row = View {
        offset: 3,
        shape: vec![3],
        strides: vec![1],
        ..matrix.clone()
    };
    let half = View::contiguous("BFloat16Storage", "1", &[2, 2]);
    let pickle = state_pickle(&[("w", matrix), ("t", turned), ("r", row), ("h", half)]);
    let storages = [("0", storage(24)), ("1", storage(8))];
    let mut unchecked = records(pickle.clone(), &storages);
    for record in &mut unchecked {
        (record.crc, record.descriptor) = (Some(0), false);
    }
    let ends = [false, true].map(|zip64| ZipEnd {
        zip64,
        ..ZipEnd::default()
    });
    let mut seeds = vec![pth(pickle, &storages)];
    seeds.extend(ends.map(|end| zip(&unchecked, &end)));
    for pickle in super::pickle::seeds() {
        let mut records = records(pickle, &[("0", storage(24)), ("1", storage(512))]);
        records[0].crc = Some(0);
        seeds.push(zip(&records, &ZipEnd::default()));
    }
    seeds
}
