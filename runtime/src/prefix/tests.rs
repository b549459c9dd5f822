use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB_SIZE: usize = 3;

/// What stands for a state: the tokens themselves.
fn delta(prompt: &[u32], from: usize, to: usize) -> StateDelta {
    let bytes = prompt[..to].iter().map(|&token| token as u8).collect();
    StateDelta { from, to, bytes }
}

/// Chunks of 3 and 2 tokens, and a padded one.
fn plan(tokens: usize) -> Vec<Chunk> {
    crate::planner::plan(tokens, &[2, 3], 100).unwrap()
}

/// Inserts every whole chunk of a prompt, as a scheduler does.
fn run(cache: &mut PrefixCache, prompt: &[u32]) {
    let (plan, mut at) = (plan(prompt.len()), 0);
    for (index, chunk) in plan.iter().enumerate() {
        let delta = delta(prompt, at, at + chunk.tokens);
        let bytes = checkpoint_bytes(delta.bytes.len(), chunk.tokens, VOCAB_SIZE);
        let room = cache.room(prompt, &plan[..=index]);
        let (wanted, before) = (room.is_some_and(|room| bytes <= room), cache.checkpoints());
        cache.insert(
            prompt,
            &plan[..=index],
            delta,
            Box::new([at as f32; VOCAB_SIZE]),
        );
        if wanted {
            let found = cache.get(prompt, &plan, at).expect("it was taken");
            assert_eq!(found.logits[0], at as f32);
        } else {
            assert!(cache.checkpoints() <= before);
        }
        at += chunk.tokens;
    }
}

/// Whatever comes and goes, a hit is the prompt's own, and bytes are what there is.
#[test]
fn a_hit_is_the_prompts_own_whatever_was_evicted() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for budget in [0, 285, 300, 900, 3000, 1 << 24] {
        let mut cache = PrefixCache::new(budget);
        let mut hits = 0;
        for _ in 0..2000 {
            let length = rng.random_range(1..14);
            let prompt: Vec<u32> = (0..length).map(|_| rng.random_range(0..2)).collect();
            let chunks = plan(length);
            let past = 3 * rng.random_range(0..3);
            if let Some(hit) = cache.get(&prompt, &chunks, past) {
                let mut at = past;
                for found in hit.deltas {
                    assert_eq!(
                        (found.from, &found.bytes),
                        (at, &delta(&prompt, at, found.to).bytes)
                    );
                    at = found.to;
                }
                assert!(at > past);
                hits += 1;
            }
            run(&mut cache, &prompt);
            let nodes = || cache.nodes.iter().flatten();
            assert_eq!(cache.bytes(), nodes().map(Checkpoint::bytes).sum::<u64>());
            assert!(cache.bytes() <= budget);
            for (index, node) in cache.nodes.iter().enumerate() {
                let Some(node) = node else { continue };
                let siblings = cache.children(node.parent).expect("a parent that is there");
                assert_eq!(siblings.get(&node.tokens), Some(&index));
            }
            assert_eq!(nodes().count(), cache.checkpoints());
        }
        // A checkpoint has 286 bytes or more.
        let evicts = (300..1 << 24).contains(&budget);
        assert_eq!(hits > 0, budget >= 300, "{budget}: {hits}");
        assert_eq!(cache.evicted() > 0, evicts, "{budget}");
    }
}

#[test]
fn a_file_with_a_checkpoint_twice_is_refused() {
    let mut cache = PrefixCache::new(1 << 20);
    let prompt = [1, 2, 1];
    for _ in 0..2 {
        cache.place(Checkpoint {
            parent: None,
            tokens: prompt.into(),
            children: HashMap::new(),
            delta: delta(&prompt, 0, 3),
            logits: Box::new([0.0; VOCAB_SIZE]),
            used: 0,
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prefixes");
    let owner = Owner {
        fingerprint: "of a package".into(),
        backend: "none".into(),
        lengths: vec![2, 3],
    };
    cache.save(&path, &owner).unwrap();
    let sizes = Sizes {
        max_seq_len: 100,
        vocab_size: VOCAB_SIZE,
        delta: &|tokens| tokens.end,
    };
    let error = PrefixCache::load(1 << 20, &path, &owner, &sizes)
        .err()
        .unwrap();
    assert!(error.to_string().contains("there twice"), "{error}");
}
