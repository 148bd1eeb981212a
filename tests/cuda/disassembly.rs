//! What nvdisasm prints of a cubin, as instructions, and the shortest way around a loop of them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::process::Command;

use crate::support::cuda_tools;

/// An instruction.
#[derive(Debug)]
pub struct Instruction {
    pub text: String,
    /// Where it comes from, if the cubin tells: file and line, then those of the call that was inlined, and so on.
    pub lines: Vec<(String, usize)>,
}

impl Instruction {
    /// The operation with its modifiers, `LDS.128`.
    pub fn operation(&self) -> &str {
        self.without_predicate().split_whitespace().next().unwrap_or_default()
    }

    fn is_predicated(&self) -> bool {
        self.text.starts_with('@')
    }

    fn without_predicate(&self) -> &str {
        if self.is_predicated() { self.text.split_once(' ').map_or("", |(_, rest)| rest) } else { &self.text }
    }
}

/// The instructions of a cubin, and which come after each.
#[derive(Debug)]
pub struct Disassembly {
    pub instructions: Vec<Instruction>,
    successors: Vec<Vec<usize>>,
}

impl Disassembly {
    /// Of a cubin.
    pub fn of(cubin: &[u8]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), cubin).expect("written");
        let nvdisasm = cuda_tools().join("nvidia/cu13/bin/nvdisasm");
        let output = Command::new(&nvdisasm).args(["-c", "-gi"]).arg(file.path()).output();
        let output =
            output.unwrap_or_else(|error| panic!("{}: {error}; `make test-cuda` installs it", nvdisasm.display()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("EXIT"), "no instructions:\n{text}");
        Self::parse(&text)
    }

    /// Lines are `.L_x_1:`, `//## File "name", line 3 inlined at "other", line 4` and
    /// `/*0010*/ @P0 BRA `(.L_x_1) ;`, to which branches to several places add `(*"BRANCH_TARGETS .L_x_1,.L_x_2"*)`.
    pub fn parse(text: &str) -> Self {
        let mut instructions: Vec<Instruction> = Vec::new();
        let mut labels: BTreeMap<&str, usize> = BTreeMap::new();
        let mut targets: Vec<Vec<&str>> = Vec::new();
        let (mut lines, mut is_fresh) = (Vec::new(), false);
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("//## File \"") {
                if !std::mem::replace(&mut is_fresh, true) {
                    lines.clear();
                }
                let (path, rest) = rest.split_once("\", line ").expect("a line");
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                let file = path.rsplit('/').next().unwrap_or(path);
                lines.push((file.to_owned(), digits.parse().expect("a number")));
            } else if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L_")) {
                labels.insert(label, instructions.len());
            } else if let Some((address, rest)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
                let is_address = !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit());
                let Some(end) = rest.find(';').filter(|_| is_address) else { continue };
                is_fresh = false;
                // A branch to several places names them after its operands, or after the semicolon.
                targets.push(
                    rest.split(['`', '(', ')', ',', ' ', '"', '*']).filter(|word| word.starts_with(".L_")).collect(),
                );
                let text = rest[..end].split("(*").next().unwrap_or_default().trim().to_owned();
                instructions.push(Instruction { text, lines: lines.clone() });
            }
        }
        let successors = |(index, instruction): (usize, &Instruction)| {
            let operation = instruction.operation().split('.').next().unwrap_or_default();
            let is_branch = matches!(operation, "BRA" | "BRX");
            let ends = is_branch || matches!(operation, "EXIT" | "RET");
            let mut next = Vec::new();
            if !ends || instruction.is_predicated() || instruction.operation().starts_with("BRA.DIV") {
                next.push(index + 1);
            }
            if is_branch {
                next.extend(targets[index].iter().filter_map(|label| labels.get(label)));
            }
            next
        };
        let successors = instructions.iter().enumerate().map(successors).collect();
        Self { instructions, successors }
    }

    /// Instructions of the shortest way from one back to itself; `None` if there is none.
    pub fn shortest_cycle(&self, start: usize) -> Option<usize> {
        let mut distance = vec![usize::MAX; self.instructions.len()];
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((at, steps)) = queue.pop_front() {
            for &next in &self.successors[at] {
                if next == start {
                    return Some(steps + 1);
                }
                if distance.get(next) == Some(&usize::MAX) {
                    distance[next] = steps + 1;
                    queue.push_back((next, steps + 1));
                }
            }
        }
        None
    }
}

#[test]
fn the_shortest_cycle_skips_what_a_branch_skips() {
    let text = r#"
	//## File "/a/b.cu", line 7 inlined at "/a/b.cu", line 9
	//## File "/a/b.cu", line 9
        /*0000*/                   MOV R1, R2 ;
.L_x_1:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   LDS.128 R4, [R1] ;
	//## File "/a/c.cuh", line 3
.L_x_2:
        /*0040*/                   BRX R32 -0xf0                    (*"BRANCH_TARGETS .L_x_1,.L_x_3"*) ;
.L_x_3:
        /*0050*/                   EXIT ;
"#;
    let code = Disassembly::parse(text);
    assert_eq!(code.instructions.len(), 6);
    assert_eq!(code.instructions[3].operation(), "LDS.128");
    assert_eq!(code.instructions[2].operation(), "BRA");
    assert_eq!(code.instructions[1].lines, [("b.cu".to_owned(), 7), ("b.cu".to_owned(), 9)]);
    assert_eq!(code.instructions[4].lines, [("c.cuh".to_owned(), 3)]);
    let cycles: Vec<_> = (0..6).map(|at| code.shortest_cycle(at)).collect();
    assert_eq!(cycles, [None, Some(3), Some(3), Some(4), Some(3), None]);
}
