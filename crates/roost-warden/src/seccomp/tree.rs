//! The first part of a filter: a binary search for the number of a call, in the classic BPF of seccomp(2).

use std::io;

use libc::{BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use seccompiler::{BpfProgram, TargetArch, sock_filter};

/// Where the kernel shows a filter the call's number and its architecture (`struct seccomp_data`).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// What is done about the numbers from one on, up to that of the next span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: u32,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// The call fails with this error.
    Fail(u32),
    /// What comes behind the tree decides.
    Pass,
}

/// A filter that allows the calls of this architecture in `allowed`, lets those in `failing` fail with an error number
/// (if they are not allowed), and has all other calls decided by `rest`, a whole filter of its own.
///
/// # Errors
///
/// When a call has no valid number.
pub(super) fn before(
    allowed: impl Iterator<Item = i64>,
    failing: &[(i64, i32)],
    architecture: TargetArch,
    rest: BpfProgram,
) -> io::Result<BpfProgram> {
    let mut calls = allowed.map(|number| (number, Verdict::Allow)).collect::<Vec<_>>();
    calls.extend(failing.iter().map(|&(number, error)| (number, Verdict::Fail(error.cast_unsigned()))));
    let search = search(&spans(calls)?);
    let architecture = match architecture {
        TargetArch::x86_64 => AUDIT_ARCH_X86_64,
        TargetArch::aarch64 => AUDIT_ARCH_AARCH64,
        TargetArch::riscv64 => AUDIT_ARCH_RISCV64,
    };
    let mut program = vec![
        load(ARCHITECTURE),
        // Of another architecture: over the load, and into the jump behind it.
        jump(BPF_JEQ, architecture, 1, 0),
        skip(search.len() + 1),
        load(NUMBER),
    ];
    program.extend(search);
    program.extend(rest);
    Ok(program)
}

// linux/audit.h: the machine's number in ELF, and marks for 64 bits and little endian.
const AUDIT_ARCH_X86_64: u32 = 62 | 0xc000_0000;
const AUDIT_ARCH_AARCH64: u32 = 183 | 0xc000_0000;
const AUDIT_ARCH_RISCV64: u32 = 243 | 0xc000_0000;

/// Neighbours with one verdict put together; the first span begins at zero, the last one reaches to the end.
fn spans(mut calls: Vec<(i64, Verdict)>) -> io::Result<Vec<Span>> {
    calls.sort_by_key(|(number, _)| *number);
    calls.dedup_by_key(|(number, _)| *number);
    let mut spans = vec![Span { from: 0, verdict: Verdict::Pass }];
    let mut begin = |from: u32, verdict| match spans.last_mut() {
        Some(last) if last.from == from => last.verdict = verdict,
        Some(last) if last.verdict == verdict => {}
        _ => spans.push(Span { from, verdict }),
    };
    for (number, verdict) in calls {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        begin(number, verdict);
        if let Some(next) = number.checked_add(1) {
            begin(next, Verdict::Pass);
        }
    }
    // A span that became what the one before it is.
    spans.dedup_by_key(|span| span.verdict);
    Ok(spans)
}

/// The search, which ends in a verdict or goes on behind its last instruction.
fn search(spans: &[Span]) -> Vec<sock_filter> {
    let mut program = Vec::new();
    let mut passes = Vec::new();
    descend(spans, &mut program, &mut passes);
    let end = program.len();
    for place in passes {
        if let Some(instruction) = program.get_mut(place) {
            *instruction = skip(end - place - 1);
        }
    }
    program
}

fn descend(spans: &[Span], program: &mut Vec<sock_filter>, passes: &mut Vec<usize>) {
    match spans {
        [] => {}
        [span] => program.push(match span.verdict {
            Verdict::Allow => answer(libc::SECCOMP_RET_ALLOW),
            Verdict::Fail(error) => answer(libc::SECCOMP_RET_ERRNO | error),
            Verdict::Pass => {
                passes.push(program.len());
                skip(0)
            }
        }),
        _ => {
            let (low, high) = spans.split_at(spans.len() / 2);
            let Some(first) = high.first() else { return };
            // The conditional jump reaches too short a way for the low half, so another one is jumped to.
            program.push(jump(BPF_JGE, first.from, 0, 1));
            let over = program.len();
            program.push(skip(0));
            descend(low, program, passes);
            let length = program.len() - over - 1;
            if let Some(instruction) = program.get_mut(over) {
                *instruction = skip(length);
            }
            descend(high, program, passes);
        }
    }
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

fn jump(condition: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(BPF_JMP | condition | BPF_K, then, otherwise, value)
}

fn skip(instructions: usize) -> sock_filter {
    // A program has at most 4,096 instructions.
    instruction(BPF_JMP | BPF_JA, 0, 0, u32::try_from(instructions).unwrap_or(u32::MAX))
}

fn answer(action: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, 0, 0, action)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: u32 = 7;

    /// Runs a program as the kernel does, as far as these have instructions, and counts the steps.
    fn run(program: &[sock_filter], architecture: u32, number: u32) -> (u32, usize) {
        let (mut accumulator, mut at, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            steps += 1;
            let code = u32::from(code);
            match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => {
                    accumulator = if k == NUMBER { number } else { architecture };
                }
                _ if code == BPF_JMP | BPF_JA => at += k as usize,
                _ if code == BPF_JMP | BPF_JEQ | BPF_K => {
                    at += usize::from(if accumulator == k { jt } else { jf });
                }
                _ if code == BPF_JMP | BPF_JGE | BPF_K => {
                    at += usize::from(if accumulator >= k { jt } else { jf });
                }
                _ if code == BPF_RET | BPF_K => return (k, steps),
                _ => panic!("{code:#x}"),
            }
        }
    }

    fn filter(allowed: &[i64], failing: &[(i64, i32)]) -> BpfProgram {
        let rest = vec![answer(OTHER)];
        before(allowed.iter().copied(), failing, TargetArch::x86_64, rest).unwrap()
    }

    #[test]
    fn every_number_gets_its_own_verdict() {
        let sparse: Vec<i64> = (0..900).filter(|number| number % 7 < 2 || number % 11 == 0).collect();
        for allowed in [&[][..], &[0], &[0, 1, 2], &[5], &[u32::MAX as i64 - 1], &sparse] {
            let failing = [(300, 38), (301, 1)];
            let allowed: Vec<i64> =
                allowed.iter().copied().filter(|number| !(300..302).contains(number)).collect();
            let program = filter(&allowed, &failing);
            for number in (0..1_000).chain([0x4000_0000, 0x4000_0001, u32::MAX - 1, u32::MAX]) {
                let expected = match failing.iter().find(|(fails, _)| *fails == i64::from(number)) {
                    Some((_, error)) => libc::SECCOMP_RET_ERRNO | error.cast_unsigned(),
                    None if allowed.contains(&i64::from(number)) => libc::SECCOMP_RET_ALLOW,
                    None => OTHER,
                };
                assert_eq!(run(&program, AUDIT_ARCH_X86_64, number).0, expected, "{number}");
            }
        }
    }

    #[test]
    fn calls_of_another_architecture_are_not_looked_up() {
        let program = filter(&[0, 1, 2, 3], &[(4, 38)]);
        for number in 0..6 {
            assert_eq!(run(&program, 0x4000_0003, number).0, OTHER);
        }
    }

    #[test]
    fn a_verdict_is_a_few_steps_away() {
        let allowed: Vec<i64> = (0..500).filter(|number| number % 2 == 0).collect();
        let program = filter(&allowed, &[]);
        let longest = (0..600).map(|number| run(&program, AUDIT_ARCH_X86_64, number).1).max();
        assert!(longest < Some(26), "{longest:?}");
    }
}
