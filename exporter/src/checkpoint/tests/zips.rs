//! Archives that lie.

use super::super::testing::{View, ZipEnd, ZipRecord, records, state_pickle, zip};
use super::{Refusal, f32s, message, open_pth, values};

fn good() -> Vec<ZipRecord> {
    let pickle = state_pickle(&[("w", View::contiguous("FloatStorage", "0", &[2, 3]))]);
    records(pickle, &[("0", f32s((0..6).map(|i| i as f32)))])
}

/// The message after `change`, for an archive with and without zip64.
#[track_caller]
fn refused(change: impl Fn(&mut Vec<ZipRecord>, &mut ZipEnd)) -> Refusal {
    let messages = [true, false].map(|zip64| {
        let (mut records, mut end) = (
            good(),
            ZipEnd {
                zip64,
                ..ZipEnd::default()
            },
        );
        change(&mut records, &mut end);
        let opened = open_pth(zip(&records, &end))
            .and_then(|checkpoint| values(&checkpoint, 1).map(|_| checkpoint));
        message(opened)
    });
    assert_eq!(&*messages[0], &*messages[1]);
    messages[0].without(|text| text)
}

#[test]
fn both_kinds_of_end_are_read() {
    for zip64 in [true, false] {
        for descriptor in [true, false] {
            let mut records = good();
            for record in &mut records {
                record.descriptor = descriptor;
            }
            let bytes = zip(
                &records,
                &ZipEnd {
                    zip64,
                    ..ZipEnd::default()
                },
            );
            let checkpoint = open_pth(bytes).unwrap();
            assert_eq!(
                values(&checkpoint, 1).unwrap()["w"].1,
                f32s((0..6).map(|i| i as f32))
            );
        }
    }
}

#[test]
fn values_behind_zip64_sentinels_are_read() {
    let mut records = good();
    let record = &mut records[2];
    let (len, start) = (24u64, {
        let before = zip(&good()[..2], &ZipEnd::default());
        before
            .windows(4)
            .position(|w| w == 0x0201_4b50u32.to_le_bytes())
            .unwrap() as u64
    });
    record.central_size = Some(u32::MAX);
    record.central_compressed = Some(u32::MAX);
    record.start = Some(u32::MAX);
    record.central_extra = [
        [1u16, 24].map(u16::to_le_bytes).concat(),
        [len, len, start].map(u64::to_le_bytes).concat(),
    ]
    .concat();
    let end = ZipEnd {
        zip64: true,
        entries: Some(u16::MAX),
        offset: Some(u32::MAX),
        len: Some(u32::MAX),
        ..ZipEnd::default()
    };
    let checkpoint = open_pth(zip(&records, &end)).unwrap();
    assert_eq!(
        values(&checkpoint, 2).unwrap()["w"].1,
        f32s((0..6).map(|i| i as f32))
    );
}

#[test]
fn a_checksum_of_zero_was_never_computed() {
    let mut records = good();
    for record in &mut records {
        record.crc = Some(0);
    }
    let checkpoint = open_pth(zip(&records, &ZipEnd::default())).unwrap();
    assert_eq!(values(&checkpoint, 1).unwrap().len(), 1);
}

#[test]
pub(super) fn lies_of_the_end_record() {
    let cut = "zip archive: no end record in the last 22 bytes; the file was cut short or has data after its end";
    assert_eq!(refused(|_, end| end.trailing = vec![0]), cut);
    assert_eq!(refused(|_, end| end.trailing = vec![7; 100]), cut);
    assert_eq!(refused(|_, end| end.comment = b"hi".to_vec()), cut);
    assert_eq!(
        refused(|_, end| end.disk = 1),
        "zip archive: it spans several disks"
    );
    let with = |change: fn(&mut ZipEnd), zip64| {
        let mut end = ZipEnd {
            zip64,
            ..ZipEnd::default()
        };
        change(&mut end);
        message(open_pth(zip(&good(), &end)))
    };
    let disagree = "zip archive: its end record and zip64 end record disagree";
    assert_eq!(with(|end| end.entries = Some(3), true), disagree);
    assert_eq!(with(|end| end.offset = Some(1), true), disagree);
    assert_eq!(with(|end| end.len = Some(1), true), disagree);
    let not_there = "zip archive: the central directory does not end where the end record starts";
    assert_eq!(with(|end| end.offset = Some(1), false), not_there);
    assert_eq!(
        with(|end| end.len = Some(u32::MAX), false),
        "zip archive: a central directory of 4294967295 bytes"
    );
    assert_eq!(
        with(|end| end.entries = Some(3), false),
        "zip archive: the central directory is longer than its records"
    );
    assert_eq!(
        with(|end| end.entries = Some(5), false),
        "zip archive: a header ends too early"
    );
    assert_eq!(
        with(|end| end.entries = Some(60000), false),
        "zip archive: 60000 records do not fit its central directory"
    );
    let sentinels = |end: &mut ZipEnd| {
        (end.entries, end.offset, end.len) = (Some(u16::MAX), Some(u32::MAX), Some(u32::MAX));
    };
    let with64 = |change: fn(&mut ZipEnd)| {
        let mut end = ZipEnd {
            zip64: true,
            ..ZipEnd::default()
        };
        sentinels(&mut end);
        change(&mut end);
        message(open_pth(zip(&good(), &end)))
    };
    assert_eq!(
        with64(|end| end.zip64_entries = Some(u64::MAX)),
        "zip archive: 18446744073709551615 records do not fit its central directory"
    );
    assert_eq!(with64(|end| end.zip64_offset = Some(u64::MAX)), not_there);
    assert_eq!(
        with64(|end| end.zip64_len = Some(1 << 40)),
        "zip archive: a central directory of 1099511627776 bytes"
    );
    for lie in [0, 5, u64::MAX] {
        let mut end = ZipEnd {
            zip64: true,
            locator: Some(lie),
            ..ZipEnd::default()
        };
        sentinels(&mut end);
        assert_eq!(
            message(open_pth(zip(&good(), &end))),
            "zip archive: the zip64 locator does not point at the record before it"
        );
    }
}

#[test]
pub(super) fn lies_of_a_record() {
    for (flags, shown) in [
        (0x0001u16, "0x0809"),
        (0x0040, "0x0848"),
        (0x2000, "0x2808"),
    ] {
        assert_eq!(
            refused(|records, _| records[2].flags |= flags),
            format!(
                "zip archive: record `model/data/0` has flags {shown}, expected only 0x0008 and 0x0800"
            )
        );
    }
    for method in [8, 99] {
        assert_eq!(
            refused(|records, _| records[2].method = method),
            format!(
                "zip archive: record `model/data/0` is compressed (method {method}), expected stored as torch.save writes it"
            )
        );
    }
    let disagree =
        "zip archive: the local and the central header of record `model/data/0` disagree";
    assert_eq!(
        refused(|records, _| records[2].local_name = Some("model/data/1".into())),
        disagree
    );
    assert_eq!(
        refused(|records, _| records[2].local_flags = Some(0)),
        disagree
    );
    assert_eq!(
        refused(|records, _| records[2].local_crc = Some(7)),
        disagree
    );
    assert_eq!(
        refused(|records, _| {
            records[2].descriptor = false;
            records[2].local_crc = Some(7);
        }),
        disagree
    );
    assert_eq!(
        refused(|records, _| records[2].descriptor_crc = Some(7)),
        "zip archive: the descriptor after record `model/data/0` disagrees with its header"
    );
    assert_eq!(
        refused(|records, _| records[2].central_size = Some(20)),
        "zip archive: record `model/data/0` is stored, yet 20 bytes long and 24 bytes in the archive"
    );
    let past = "zip archive: record `model/version` does not lie before the central directory";
    assert_eq!(
        refused(|records, _| {
            records[3].central_size = Some(1 << 30);
            records[3].central_compressed = Some(1 << 30);
        }),
        past
    );
    assert_eq!(
        refused(|records, _| records[3].start = Some(0xffff_fff0)),
        past
    );
    assert_eq!(
        refused(|records, _| records[3].start = Some(1)),
        "zip archive: no local header for record `model/version`"
    );
    let lacks = "zip archive: record `model/version` lacks its zip64 field";
    assert_eq!(
        refused(|records, _| records[3].start = Some(u32::MAX)),
        lacks
    );
    assert_eq!(
        refused(|records, _| {
            records[3].start = Some(u32::MAX);
            records[3].central_extra = vec![1, 0, 2, 0, 9, 9];
        }),
        "zip archive: a header ends too early"
    );
    assert_eq!(
        refused(|records, _| records[3].central_extra = vec![1, 0, 0, 0, 1, 0, 0, 0]),
        "zip archive: record `model/version` has two zip64 fields"
    );
    assert_eq!(
        refused(|records, _| {
            records[3].start = Some(u32::MAX);
            records[3].central_extra = [vec![1, 0, 8, 0], u64::MAX.to_le_bytes().to_vec()].concat();
        }),
        past
    );
    assert_eq!(
        refused(|records, _| records[3].comment = vec![1]),
        "zip archive: record `model/version` has a comment or another disk"
    );
    assert_eq!(
        refused(|records, _| records[3].disk = 1),
        "zip archive: record `model/version` has a comment or another disk"
    );
}

#[test]
pub(super) fn names_that_are_not_plain() {
    for name in [
        "../x", "a/../b", "/abs", "a//b", "a\\b", "c:x", "dir/", "", ".", "a\0b",
    ] {
        let found = refused(|records, _| {
            let mut record = ZipRecord::new(name, *b"x");
            record.descriptor = true;
            records.push(record);
        });
        assert_eq!(
            found,
            format!("zip archive: unsafe record name `{}`", name.escape_debug()),
            "{name}"
        );
    }
}

#[test]
pub(super) fn records_that_share_names_or_bytes() {
    assert_eq!(
        refused(|records, _| {
            let twin = records[2].clone();
            records.push(twin);
        }),
        "zip archive: two records are named `model/data/0`"
    );
    let mut records = good();
    let mut inner = ZipRecord::new("model/inner", *b"abc");
    inner.descriptor = true;
    let hidden = zip(&[inner.clone()], &ZipEnd::default());
    let local_len = 30 + inner.name.len() + 3 + 16;
    records[3].data = hidden[..local_len].to_vec();
    let outer_start = {
        let bytes = zip(&records, &ZipEnd::default());
        bytes
            .windows(12)
            .position(|w| w == b"model/inner\x61")
            .unwrap()
            - 30
    };
    let mut bytes = zip(&records, &ZipEnd::default());
    // A central entry that points into the data of another record.
    let central_start = bytes
        .windows(4)
        .position(|w| w == 0x0201_4b50u32.to_le_bytes())
        .unwrap();
    inner.start = Some(outer_start as u32);
    let extra = zip(&[inner], &ZipEnd::default());
    let from = extra
        .windows(4)
        .position(|w| w == 0x0201_4b50u32.to_le_bytes())
        .unwrap();
    let entry = &extra[from..extra.len() - 22];
    let end = bytes.len() - 22;
    let mut tail = bytes.split_off(end);
    bytes.extend(entry);
    tail[8..10].copy_from_slice(&5u16.to_le_bytes());
    tail[10..12].copy_from_slice(&5u16.to_le_bytes());
    tail[12..16].copy_from_slice(&((end - central_start + entry.len()) as u32).to_le_bytes());
    bytes.extend(tail);
    assert_eq!(
        message(open_pth(bytes)),
        "zip archive: records `model/version` and `model/inner` overlap"
    );
}

#[test]
pub(super) fn the_wrong_records() {
    let two = refused(|records, _| {
        let mut twin = records[0].clone();
        twin.name = "other/data.pkl".into();
        records.push(twin);
    });
    assert_eq!(
        two,
        "zip archive: two pickles, `model/data.pkl` and `other/data.pkl`"
    );
    assert_eq!(
        refused(|records, _| {
            records.remove(0);
        }),
        "zip archive: no record `NAME/data.pkl`; torch.save did not write this"
    );
    assert_eq!(
        refused(|records, _| records[1].data = b"big".to_vec()),
        "zip archive: expected byteorder `little`, found `big`"
    );
    assert_eq!(
        refused(|records, _| records[1].data = vec![b'l'; 99]),
        "zip archive: record `model/byteorder` has 99 bytes, expected at most 16"
    );
    assert_eq!(
        refused(|records, _| records.push(ZipRecord::new("model/constants.pkl", *b"x"))),
        "a TorchScript program; save the state dict of the model instead"
    );
    assert_eq!(
        refused(|records, _| {
            records.remove(2);
        }),
        "zip archive: no record `data/0`, which the pickle names as a storage"
    );
    for len in [0, 23, 25, 4096] {
        assert_eq!(
            refused(|records, _| records[2].data = vec![0; len]),
            format!("zip archive: storage `0`: expected 6 elements of f32, found {len} bytes")
        );
    }
    for (record, name) in [
        (0, "model/data.pkl"),
        (1, "model/byteorder"),
        (2, "model/data/0"),
    ] {
        let found = refused(|records, _| records[record].crc = Some(0xdead_beef));
        let crc = crc32fast::hash(&good()[record].data);
        assert_eq!(
            found,
            format!(
                "record `{name}` is damaged: expected CRC-32 deadbeef, found {crc:08x}; fetch the file again"
            )
        );
    }
}

#[test]
pub(super) fn files_that_are_not_archives() {
    assert_eq!(
        message(open_pth(vec![])),
        "the file is empty; fetch it again"
    );
    assert_eq!(
        message(open_pth(vec![1; 21])),
        "zip archive: 21 bytes are too few; the file is not a zip archive or was cut short"
    );
    assert_eq!(
        message(open_pth(vec![1; 500])),
        "zip archive: no end record in the last 22 bytes; the file was cut short or has data after its end"
    );
    assert_eq!(
        message(open_pth(
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M".to_vec()
        )),
        "the format of torch.save before PyTorch 1.6; load it and save it again with a current PyTorch"
    );
    assert_eq!(
        message(open_pth(b"\x80\x04\x95\x03\0\0\0\0\0\0\0}\x94.".to_vec())),
        "a pickle that torch.save did not write; load it where it is trusted and save the state dict with torch.save"
    );
}
