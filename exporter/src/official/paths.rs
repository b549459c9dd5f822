//! How directories and files of the released code, and people, spell a pattern.

use crate::config::Named;
use ratplus_graphs::pattern::Pattern;
use std::path::Path;

/// Initial tokens in the released adaptation recipe, for names that leave them out.
const RECIPE_INITIAL: i64 = 4;

/// What a checkpoint's path says about its pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPattern {
    /// Nothing.
    Silent,
    /// A pattern.
    Named(Named),
    /// Something that cannot be relied on, and why.
    Unclear(String),
}

/// How far up from the file a directory's name is taken to describe it.
const COMPONENTS: usize = 4;

/// Looks for a pattern in the names of the file and the directories around it.
///
/// The released code names runs `...ratplusd16p4w256reTruejointtrainFalse...` (initial tokens are
/// `p`), older ones `...l1l16p4w256reTrue...`, and generations `d16w256p4`. People write
/// `D=16_W=256`, `d16w256i4` or `dilation16_local256_initial4`. Dilation comes first and the
/// window has to be there.
pub(crate) fn path_pattern(path: &Path) -> PathPattern {
    for component in path.components().rev().take(COMPONENTS) {
        let std::path::Component::Normal(name) = component else {
            continue;
        };
        let Some(name) = name.to_str() else { continue };
        let mut found: Vec<NamePattern> = Vec::new();
        let starts = name.char_indices().map(|(at, _)| at);
        for candidate in starts.filter_map(|at| name_pattern(&name[at..])) {
            if !found.contains(&candidate) {
                found.push(candidate);
            }
        }
        match found.as_slice() {
            [] => {}
            [one] => return one.judge(name),
            _ => return PathPattern::Unclear(format!("`{name}` names several patterns")),
        }
    }
    PathPattern::Silent
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NamePattern {
    dilation: i64,
    local_window: i64,
    initial: Option<i64>,
    /// Written by the training code, which runs the first two of a list of layers together.
    generated: bool,
    pretrained: bool,
}

impl NamePattern {
    fn judge(&self, name: &str) -> PathPattern {
        let whole = |value: i64| value <= 0 || value.count_ones() == 1;
        if self.pretrained {
            return PathPattern::Unclear(format!(
                "`{name}` is a joint-training run: a model to be adapted to a pattern first, or to be run dense \
                 (`dilation: 1`)"
            ));
        }
        if self.generated && !(whole(self.dilation) && whole(self.local_window)) {
            return PathPattern::Unclear(format!(
                "`{name}` may abbreviate a list of one pattern per layer"
            ));
        }
        let initial = self.initial.unwrap_or(RECIPE_INITIAL);
        if let Err(error) = Pattern::new(self.dilation, self.local_window, initial) {
            return PathPattern::Unclear(format!("`{name}`: {error}"));
        }
        let assumed = if self.initial.is_none() {
            "; it does not name the initial tokens, so they are those of the released recipe (`initial` changes them)"
        } else {
            ""
        };
        PathPattern::Named(Named {
            dilation: vec![self.dilation],
            local_window: vec![self.local_window],
            initial: vec![initial],
            origin: format!("the name `{name}`{assumed}"),
        })
    }
}

const DILATION: [&str; 3] = ["dilation_size", "dilation", "d"];
const WINDOW: [&str; 5] = ["local_window", "local_size", "local", "window", "w"];
const INITIAL: [&str; 4] = ["initial_size", "initial", "i", "p"];

/// One of `words` (any case), perhaps `=` or `_`, and an integer; and what follows.
fn field<'a>(text: &'a str, words: &[&str]) -> Option<(i64, &'a str)> {
    let word = words.iter().find(|word| {
        text.get(..word.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(word))
    })?;
    let rest = &text[word.len()..];
    let rest = rest.strip_prefix(['=', '_']).unwrap_or(rest);
    let sign = usize::from(rest.starts_with('-'));
    let digits = rest[sign..].bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = rest.split_at(sign + digits);
    let plain = digits == 1 || digits <= 9 && !number[sign..].starts_with('0');
    Some((number.parse().ok().filter(|_| plain)?, rest))
}

fn name_pattern(text: &str) -> Option<NamePattern> {
    // The older training code wrote `l` for the dilation, followed by `p` and `w` at once.
    let older = || {
        let (dilation, rest) = field(text, &["l"])?;
        let (initial, rest) = field(rest, &["p"])?;
        let (local_window, rest) = field(rest, &["w"])?;
        rest.starts_with("re")
            .then_some((dilation, local_window, Some(initial), rest))
    };
    let plain = || {
        let (dilation, mut rest) = field(text, &DILATION)?;
        let (mut window, mut initial) = (None, None);
        for _ in 0..2 {
            let next = rest.trim_start_matches(['_', '-', ',', ' ', '+', '.']);
            let slot = match (field(next, &WINDOW), field(next, &INITIAL)) {
                (Some(found), _) if window.is_none() => Some((&mut window, found)),
                (_, Some(found)) if initial.is_none() => Some((&mut initial, found)),
                _ => None,
            };
            let Some((slot, (value, after))) = slot else {
                break;
            };
            *slot = Some(value);
            rest = after;
        }
        Some((dilation, window?, initial, rest))
    };
    let (dilation, local_window, initial, rest) = older().or_else(plain)?;
    let generated = ["reTrue", "reFalse"].iter().any(|re| rest.starts_with(re));
    let pretrained = ["jointtrainTrue", "mixtrainTrue"]
        .iter()
        .any(|word| rest.contains(word));
    Some(NamePattern {
        dilation,
        local_window,
        initial,
        generated,
        pretrained: generated && pretrained,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> PathPattern {
        path_pattern(Path::new(path))
    }

    fn named(path: &str) -> (i64, i64, i64) {
        match read(path) {
            PathPattern::Named(named) => {
                (named.dilation[0], named.local_window[0], named.initial[0])
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn names_of_the_released_code_are_read() {
        let run = "fineweb_llama4096-lm-lmposrope10000-sequenced2048l24";
        for (cell, expected) in [
            ("ratplusd16p4w256reTruejointtrainFalse-ffn-lm", (16, 256, 4)),
            ("ratplusd-1p4w64reTruejointtrainFalse-ffn-lm", (-1, 64, 4)),
            ("ratplusd1p0w0reFalsejointtrainFalse-ffn-lm", (1, 0, 0)),
            (
                "ratplus16localprefixfgatesimplel1l16p4w256reTruemixtrainFalseropepostogatefFalse-ffn-lm",
                (16, 256, 4),
            ),
        ] {
            assert_eq!(
                named(&format!("/ckpt/adapt/{run}-{cell}/8e-05_512_1/475.pth")),
                expected
            );
        }
        assert_eq!(named("exp/longbench_gen/d16w256p4/model.pth"), (16, 256, 4));
    }

    #[test]
    fn names_people_write_are_read() {
        for path in [
            "adapt/1b_D=16_W=256_I=4.pth",
            "adapt/D16_W256_I4/1b.pth",
            "ratplus-1b-d16w256i4.safetensors",
            "dilation16_local256_initial4.pth",
            "dilation_size=16,local_size=256,initial_size=4.pth",
            "D=16, W=256, I=4/x.pth",
        ] {
            assert_eq!(named(path), (16, 256, 4), "{path}");
        }
        assert_eq!(named("kjv_d16w64i4/model.pth"), (16, 64, 4));
        assert_eq!(named("d16_w20_i4/model.safetensors"), (16, 20, 4));
        let PathPattern::Named(assumed) = read("adapt/1b/D16_W256.pth") else {
            panic!()
        };
        assert_eq!(assumed.initial, [4]);
        assert!(
            assumed.origin.contains("released recipe"),
            "{}",
            assumed.origin
        );
    }

    #[test]
    fn other_names_say_nothing() {
        for path in [
            "model.pth",
            "sequenced2048l24/475.pth",
            "llama-d2048.pth",
            "d16/model.pth",
            "d16weights/model.pth",
            "3d_window/model.pth",
            "d16w0256/model.pth",
            "d99999999999w1/model.pth",
            "d16w256p4/a/b/c/d/model.pth",
        ] {
            assert_eq!(read(path), PathPattern::Silent, "{path}");
        }
    }

    #[test]
    fn names_that_mislead_are_refused() {
        for (path, reason) in [
            (
                "x-ratplusd64p0w0reTruejointtrainTrue-ffn/1.pth",
                "joint-training",
            ),
            (
                "x-l1l64p0w0reTruemixtrainTrueropepost/1.pth",
                "joint-training",
            ),
            (
                "x-ratplusd164p4w0reTruejointtrainFalse/1.pth",
                "one pattern per layer",
            ),
            (
                "x-ratplusd16p4w2560reTruejointtrainFalse/1.pth",
                "one pattern per layer",
            ),
            ("d64w0p0_to_d16w256p4/1.pth", "several patterns"),
            ("d0w4i4/1.pth", "dilation is 0"),
        ] {
            match read(path) {
                PathPattern::Unclear(found) => assert!(found.contains(reason), "{path}: {found}"),
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}
