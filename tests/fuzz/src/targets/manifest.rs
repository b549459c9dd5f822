//! `manifest.json`, as it is and with its checksum made right.

use ratplus_graphs::model::storage;
use ratplus_graphs::package::Manifest;

pub fn run(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        assert_eq!(manifest.to_json(), data);
        check(&manifest);
    } else if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        let sealed = manifest.to_json();
        if let Ok(again) = Manifest::parse(&sealed) {
            assert_eq!(again, manifest);
            check(&again);
        }
    }
}

fn check(manifest: &Manifest) {
    for name in manifest.files.keys() {
        let mut parts = std::path::Path::new(name).components();
        assert!(matches!(
            (parts.next(), parts.next()),
            (Some(std::path::Component::Normal(_)), None)
        ));
    }
    let lengths: Vec<_> = manifest.engines.iter().map(|e| e.seq_len).collect();
    assert_eq!(lengths.first(), Some(&1));
    assert!(lengths.is_sorted_by(|a, b| a < b));
    // As a package is opened.
    let (tensors, bytes) = storage(&manifest.model, &manifest.shape(), &manifest.precision);
    assert!(
        tensors
            .iter()
            .all(|stored| stored.offset + stored.tensor.bytes() as u64 <= bytes)
    );
}
