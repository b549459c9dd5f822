//! The archive of a `.pth`.

use ratplus_exporter::checkpoint::testing::{ZipEnd, ZipRecord, zip, zip_entries};
use std::collections::BTreeSet;

pub fn run(data: &[u8]) {
    let Ok(entries) = zip_entries(data.to_vec()) else {
        return;
    };
    let names: BTreeSet<_> = entries.iter().map(|(name, ..)| name).collect();
    assert_eq!(names.len(), entries.len(), "two records of one name");
    let mut spans: Vec<_> = entries
        .iter()
        .map(|&(_, start, len)| (start, start + len))
        .collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(spans.iter().all(|&(_, end)| end <= data.len() as u64));
    // The same records, written anew, are read as the same.
    let records: Vec<_> = entries
        .iter()
        .map(|&(ref name, start, len)| {
            ZipRecord::new(name, &data[start as usize..(start + len) as usize])
        })
        .collect();
    let again = zip_entries(zip(&records, &ZipEnd::default())).expect("an archive of ours");
    let lengths = |entries: &[(String, u64, u64)]| {
        let pairs = entries.iter().map(|(name, _, len)| (name.clone(), *len));
        pairs.collect::<Vec<_>>()
    };
    assert_eq!(lengths(&again), lengths(&entries));
}
