//! Archives without a checkpoint in them.

use ratplus_exporter::checkpoint::testing::{ZipEnd, ZipRecord, zip};

pub const WORDS: &[&[u8]] = &[
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"PK\x07\x08",
    b"\x01\x00\x18\x00",
    b"\xff\xff\xff\xff",
    b"\xff\xff",
    b"\x08\x08",
    b"model/data.pkl",
    b"model/data/0",
    b"model/byteorder",
    b"model/constants.pkl",
    b"little",
    b"../",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for zip64 in [false, true] {
        for descriptor in [false, true] {
            let mut records = vec![
                ZipRecord::new("model/data.pkl", *b"abc"),
                ZipRecord::new("model/data/0", *b""),
            ];
            for record in &mut records {
                record.descriptor = descriptor;
            }
            let end = ZipEnd {
                zip64,
                ..ZipEnd::default()
            };
            seeds.push(zip(&records, &end));
        }
    }
    let mut long = ZipRecord::new("a", *b"0123456789");
    (long.central_size, long.central_compressed) = (Some(u32::MAX), Some(u32::MAX));
    long.central_extra = [
        &b"\x01\x00\x10\x00"[..],
        &[10, 0, 0, 0, 0, 0, 0, 0].repeat(2),
    ]
    .concat();
    seeds.push(zip(&[long], &ZipEnd::default()));
    seeds
}
