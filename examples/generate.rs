//! A package continues a prompt, token by token: `example-generate DIR BACKEND COUNT PROMPT`.
//!
//! The loop is the one of a server: sequences are added to slots, a step runs what waits, a sampler
//! picks from the logits, and the token is fed back.

use ratplus_runtime::{BackendKind, Engine, Package, Ran, Sampler, Sampling, Session, Tokenizer};
use std::error::Error;
use std::io::Write;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, backend, count, prompt] = &arguments[..] else {
        return Err("example-generate DIR BACKEND COUNT PROMPT".into());
    };
    let backend: BackendKind = backend.parse()?;
    let package = Package::open(dir)?;
    let json = package.tokenizer_json();
    let tokenizer = Tokenizer::from_json(json.ok_or("the package has no tokenizer")?)?;
    let encoded = tokenizer.encode(prompt, package.manifest().special_tokens)?;

    let mut engine = Engine::new(Session::builder(&package).open(backend)?);
    let mut sampler = Sampler::new(&Sampling::GREEDY)?;
    let mut text = tokenizer.stream(&encoded.ids);
    let slot = engine.free_slot().ok_or("no free slot")?;
    engine.add(slot, &encoded.ids)?;
    print!("{prompt}");
    for _ in 0..count.parse()? {
        // A step runs a chunk of the prompt; once that is through, the token that was fed.
        let token = loop {
            if engine.step()? == Ran::Nothing {
                return Err("nothing to run".into());
            }
            if let Some(logits) = engine.logits(slot) {
                break sampler.sample(logits)?;
            }
        };
        print!("{}", text.push(token).unwrap_or_default());
        std::io::stdout().flush()?;
        engine.feed(slot, token)?;
    }
    println!("{}", text.finish()?);
    Ok(())
}
