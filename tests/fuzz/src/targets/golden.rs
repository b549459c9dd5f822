//! `golden.safetensors`, as `verify --golden` reads it.

use ratplus_tools::verify::Golden;

pub fn run(data: &[u8]) {
    let Ok(golden) = Golden::from_bytes(data) else {
        return;
    };
    let (batch, seq_len) = (golden.batch(), golden.seq_len());
    assert!(batch > 0 && seq_len > 0 && golden.vocab_size > 0);
    assert!(golden.tokens.iter().all(|tokens| tokens.len() == seq_len));
    assert_eq!(
        golden.logits.len(),
        batch * golden.positions.len() * golden.vocab_size
    );
    for sequence in 0..batch.min(4) {
        for &position in golden.positions.iter().take(16) {
            let logits = golden
                .logits_at(sequence, position)
                .expect("a listed position");
            assert_eq!(logits.len(), golden.vocab_size);
        }
        assert!(golden.logits_at(sequence, seq_len).is_none());
    }
    for tap in &golden.taps {
        assert_eq!(
            tap.values.len(),
            batch * seq_len * tap.width,
            "{}",
            tap.name
        );
        let _ = tap.graph_name(2);
    }
    let _ = golden.largest_logit();
}
