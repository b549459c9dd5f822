//! A checkpoint becomes a package: `example-export CHECKPOINT DIR [TOKENIZER]`.

use ratplus_exporter::{Checkpoint, CheckpointWeights, PackageOptions, ResolveOptions};
use ratplus_exporter::{package, resolve};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, dir, tokenizer @ ..] = &arguments[..] else {
        return Err("example-export CHECKPOINT DIR [TOKENIZER]".into());
    };
    let checkpoint = Checkpoint::open(checkpoint)?;
    // Sizes, patterns and weights; what the file and its configuration say decides.
    let model = resolve::resolve(&checkpoint, &ResolveOptions::default())?;
    for note in &model.notes {
        println!("note: {note}");
    }
    let mut options = PackageOptions::new(model.spec, 512);
    options.tokenizer = tokenizer.first().map(Into::into);
    let mut weights = CheckpointWeights::new(&checkpoint, &model.sources, Default::default());
    // Nothing of that name until the package is whole.
    let written = package::write(Path::new(dir), &options, &mut weights, &mut |_| ())?;
    println!("{dir}: {} files", written.manifest.files.len());
    Ok(())
}
