//! What nvdisasm prints, instruction by instruction.

/// A kernel's machine code.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// In order of their addresses.
    pub instructions: Vec<Instruction>,
}

/// One instruction, and what the compiler decided for the scheduler.
#[derive(Clone, Debug, Default)]
pub struct Instruction {
    /// With its operands, as in `@!P0 BRA .L_x_3`.
    pub text: String,
    /// Labels before it.
    pub labels: Vec<String>,
    /// Cycles until the warp's next instruction may issue.
    pub stall: u32,
    /// The scoreboard that its result will release.
    pub result: Option<usize>,
    /// The scoreboard that its operands will release.
    pub operands: Option<usize>,
    /// Scoreboards that it waits for, a bit each.
    pub waits: u32,
}

impl Instruction {
    /// Its name with its modifiers, as in `MUFU.EX2`.
    pub fn name(&self) -> &str {
        let mut words = self.text.split_whitespace();
        let first = words.next().unwrap_or_default();
        match first.starts_with('@') {
            true => words.next().unwrap_or_default(),
            false => first,
        }
    }

    /// Its name up to the first dot.
    pub fn operation(&self) -> &str {
        self.name().split('.').next().unwrap_or_default()
    }

    /// The label that it may jump to.
    pub fn target(&self) -> Option<&str> {
        let jumps = matches!(self.operation(), "BRA" | "CALL");
        let (_, rest) = self.text.split_once("`(").filter(|_| jumps)?;
        rest.split(')').next()
    }

    /// Whether the instruction after it never runs next.
    pub fn ends(&self) -> bool {
        let always = !self.text.starts_with('@');
        match self.operation() {
            "EXIT" | "RET" => always,
            // A second predicate stands among the operands; `BRA.DIV` has a condition of its own.
            "BRA" => always && self.name() == "BRA" && self.text.contains("BRA `("),
            _ => false,
        }
    }

    /// Whether it is part of a division of integers, or of f32.
    pub fn divides(&self) -> bool {
        matches!(self.operation(), "I2F" | "F2I" | "I2FP") || self.name().starts_with("MUFU.RCP")
    }
}

/// The kernels in what `nvdisasm -c -hex` printed.
pub fn parse(listing: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut labels = Vec::new();
    let mut half: Option<Instruction> = None;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix(".text.")
            .and_then(|l| l.strip_suffix(':'))
        {
            let (name, instructions) = (name.to_owned(), Vec::new());
            kernels.push(Kernel { name, instructions });
            labels.clear();
        } else if let Some(label) = line.strip_suffix(':').filter(|l| l.starts_with(".L")) {
            labels.push(label.to_owned());
        } else if let (Some((text, _)), Some(_)) = (line.split_once(';'), encoding(line)) {
            // An address as a comment stands before it.
            let text = text.split_once("*/").map_or(text, |(_, text)| text);
            half = Some(Instruction {
                text: text.split_whitespace().collect::<Vec<_>>().join(" "),
                labels: std::mem::take(&mut labels),
                ..Instruction::default()
            });
        } else if let (Some(high), Some(mut instruction)) = (encoding(line), half.take()) {
            let control = high >> 41;
            let scoreboard = |shift: u32| {
                let number = (control >> shift & 7) as usize;
                (number < 6).then_some(number)
            };
            instruction.stall = (control & 15).max(1) as u32;
            instruction.result = scoreboard(5);
            instruction.operands = scoreboard(8);
            instruction.waits = (control >> 11 & 63) as u32;
            if let Some(kernel) = kernels.last_mut() {
                kernel.instructions.push(instruction);
            }
        }
    }
    kernels
}

/// The number in the comment at a line's end.
fn encoding(line: &str) -> Option<u64> {
    let (_, number) = line.strip_suffix("*/")?.rsplit_once("/* 0x")?;
    u64::from_str_radix(number.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two instructions of a listing, as nvdisasm 13 prints them.
    const LISTING: &str = "
.text.kernel:
.L_x_1:
        /*0120*/                   LDG.E.64 R4, desc[UR24][R4.64] ;      /* 0x0000001804047981 */
                                                                        /* 0x000ee2000c1e1b00 */
        /*0130*/              @!P0 BRA `(.L_x_1) ;                       /* 0x0000000000047947 */
                                                                        /* 0x008fea0003800000 */
";

    #[test]
    fn listings_are_read() {
        let kernels = parse(LISTING);
        let [load, branch] = &kernels[0].instructions[..] else {
            panic!("expected two instructions");
        };
        assert_eq!(kernels[0].name, "kernel");
        assert_eq!((load.name(), load.operation()), ("LDG.E.64", "LDG"));
        assert_eq!(load.labels, [".L_x_1"]);
        assert_eq!((load.result, load.operands, load.stall), (Some(3), None, 1));
        assert_eq!((branch.target(), branch.ends()), (Some(".L_x_1"), false));
        assert_eq!((branch.waits, branch.stall), (1 << 3, 5));
    }
}
