//! The stack size of programs with the functions that they call. The kernel rejects more than 512
//! bytes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};

/// Limit for the sum of the frames of a call chain (`MAX_BPF_STACK`, include/linux/filter.h).
pub(super) const LIMIT: u64 = 512;

/// Kernels before 6.4 round each frame up to a multiple of this, at least one
/// (`check_max_stack_depth`, kernel/bpf/verifier.c, Linux 6.1).
const STEP: u64 = 32;

/// Bytes of one instruction.
const INSTRUCTION: usize = 8;

/// The register that points at the end of the frame.
const FRAME: u8 = 10;

/// The place of code: index of the section, and offset.
type Place = (usize, u64);

/// A program or a function.
#[derive(Default, Debug)]
struct Function {
    name: String,
    frame: u64,
    calls: Vec<Place>,
}

/// The calls between functions, by their names.
pub(super) struct Calls {
    /// For each function, the largest sum of frames of a call chain from it.
    pub(super) depths: BTreeMap<String, u64>,
    /// Functions that another one calls.
    pub(super) called: BTreeSet<String>,
}

/// Finds all calls.
pub(super) fn scan(file: &object::File<'_>) -> Result<Calls> {
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let name = symbol.name()?.to_owned();
        let function = scan_function(file, index, symbol.address(), symbol.size());
        let (frame, calls) = function.with_context(|| format!("in {name}"))?;
        functions.insert((index.0, symbol.address()), Function { name, frame, calls });
    }
    let mut known = BTreeMap::new();
    for place in functions.keys() {
        depth(&functions, *place, &mut known, 0)?;
    }
    let calls = functions.values().flat_map(|function| &function.calls);
    Ok(Calls {
        called: calls.map(|place| functions[place].name.clone()).collect(),
        depths: functions
            .iter()
            .map(|(place, function)| (function.name.clone(), known[place]))
            .collect(),
    })
}

fn depth(
    functions: &BTreeMap<Place, Function>,
    place: Place,
    known: &mut BTreeMap<Place, u64>,
    level: usize,
) -> Result<u64> {
    if let Some(depth) = known.get(&place) {
        return Ok(*depth);
    }
    if level > functions.len() {
        bail!("functions call each other recursively");
    }
    let function = functions
        .get(&place)
        .context("a call does not lead to a function")?;
    let mut deepest = 0;
    for call in &function.calls {
        deepest = deepest.max(depth(functions, *call, known, level + 1)?);
    }
    let sum = function.frame.max(1).next_multiple_of(STEP) + deepest;
    known.insert(place, sum);
    Ok(sum)
}

/// The frame of a function and the functions that it calls.
fn scan_function(
    file: &object::File<'_>,
    index: SectionIndex,
    start: u64,
    size: u64,
) -> Result<(u64, Vec<Place>)> {
    let section = file.section_by_index(index)?;
    let code = section
        .data_range(start, size)?
        .context("its code is not in the file")?;
    let mut targets = BTreeMap::new();
    for (offset, relocation) in section.relocations() {
        if let RelocationTarget::Symbol(symbol) = relocation.target() {
            targets.insert(offset, symbol);
        }
    }
    let mut frame = Frame::default();
    let mut calls = Vec::new();
    for (number, bytes) in (0..).zip(code.chunks_exact(INSTRUCTION)) {
        let instruction = Instruction::read(bytes);
        frame.read(&instruction);
        if !instruction.is_call() {
            continue;
        }
        let at = start + number * INSTRUCTION as u64;
        // The distance is in instructions, from the one behind the call; with a relocation, from
        // its symbol.
        let distance = (i64::from(instruction.immediate) + 1) * INSTRUCTION as i64;
        calls.push(match targets.get(&at) {
            Some(symbol) => {
                let symbol = file.symbol_by_index(*symbol)?;
                let section = symbol.section_index().context("a call of an undefined symbol")?;
                (section.0, symbol.address().wrapping_add_signed(distance))
            }
            None => (index.0, at.wrapping_add_signed(distance)),
        });
    }
    Ok((frame.size, calls))
}

/// One instruction (RFC 9669 section 3).
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            destination: bytes[1] & 0xf,
            source: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// Whether it calls a function of the object, not a helper.
    fn is_call(&self) -> bool {
        const CALL: u8 = 0x85;
        self.code == CALL && self.source == 1
    }
}

/// The state of a function's frame after some of its instructions.
#[derive(Default)]
struct Frame {
    size: u64,
    /// Registers that contain a copy of the frame's end.
    copies: [bool; 16],
}

impl Frame {
    fn read(&mut self, instruction: &Instruction) {
        const LOAD: u8 = 1;
        const STORE_IMMEDIATE: u8 = 2;
        const STORE: u8 = 3;
        const ADD_IMMEDIATE: u8 = 0x07;
        const MOVE: u8 = 0xbf;
        let Instruction {
            code,
            destination,
            source,
            offset,
            immediate,
        } = *instruction;
        match code & 7 {
            LOAD if source == FRAME => self.reach(offset.into()),
            STORE | STORE_IMMEDIATE if destination == FRAME => self.reach(offset.into()),
            _ => {}
        }
        let copy = &mut self.copies[usize::from(destination)];
        match code {
            MOVE => *copy = source == FRAME,
            ADD_IMMEDIATE if *copy => {
                *copy = false;
                self.reach(immediate.into());
            }
            _ => *copy = false,
        }
    }

    fn reach(&mut self, offset: i64) {
        self.size = self.size.max(offset.min(0).unsigned_abs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(instructions: &[[u8; 8]]) -> u64 {
        let mut frame = Frame::default();
        for bytes in instructions {
            frame.read(&Instruction::read(bytes));
        }
        frame.size
    }

    #[test]
    fn the_farthest_access_is_the_frame_size() {
        // *(u32 *)(r10 - 16) = w1; r2 = *(u64 *)(r10 - 8)
        let store = [0x63, 0x1a, 0xf0, 0xff, 0, 0, 0, 0];
        let load = [0x79, 0xa2, 0xf8, 0xff, 0, 0, 0, 0];
        assert_eq!(size(&[store, load]), 16);
        // *(u32 *)(r1 - 16) = w1: another's memory.
        assert_eq!(size(&[[0x63, 0x11, 0xf0, 0xff, 0, 0, 0, 0]]), 0);
    }

    #[test]
    fn pointers_into_the_frame_extend_it() {
        // r2 = r10; r2 += -40
        let copy = [0xbf, 0xa2, 0, 0, 0, 0, 0, 0];
        let add = [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff];
        assert_eq!(size(&[copy, add]), 40);
        assert_eq!(size(&[add]), 0);
        // r2 = 0 in between.
        assert_eq!(size(&[copy, [0xb7, 0x02, 0, 0, 0, 0, 0, 0], add]), 0);
    }

    #[test]
    fn frames_of_a_call_chain_are_rounded_up_and_added() {
        let section = 1;
        let function = |name: &str, frame, calls: &[u64]| Function {
            name: name.to_owned(),
            frame,
            calls: calls.iter().map(|at| (section, *at)).collect(),
        };
        let mut functions = BTreeMap::from([
            ((section, 0), function("a", 8, &[8, 16])),
            ((section, 8), function("b", 33, &[])),
            ((section, 16), function("c", 0, &[])),
        ]);
        assert_eq!(
            depth(&functions, (section, 0), &mut BTreeMap::new(), 0).expect("no recursion"),
            96
        );
        functions.insert((section, 8), function("b", 33, &[0]));
        assert!(depth(&functions, (section, 0), &mut BTreeMap::new(), 0).is_err());
    }
}
