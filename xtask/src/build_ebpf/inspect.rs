//! Reads object files of kernel programs.

use super::stack;
use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

/// Bytes of one instruction.
const INSTRUCTION: u64 = 8;

/// The section of functions that programs call. Every other section with code contains programs.
pub(super) const SUBPROGRAMS: &str = ".text";

/// The section of `bpf_map_def` records.
const MAPS: &str = "maps";

/// The contents of an object file.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Object {
    /// Programs by section and name, then the functions that they call.
    pub(crate) functions: Vec<Function>,
    /// Maps by name.
    pub(crate) maps: Vec<Map>,
    /// The license that the programs declare.
    pub(crate) license: Option<String>,
    symbols: Vec<String>,
}

/// A program, or a function that programs call.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Function {
    /// Its symbol.
    pub(crate) name: String,
    /// Its section, which contains the kind of the program.
    pub(crate) section: String,
    /// Its size, where a 64-bit constant counts as two.
    pub(crate) instructions: u64,
    /// The bytes of stack that it and its callees take, see [`stack::Calls`].
    pub(crate) stack: u64,
    /// Whether a program or another function calls it.
    pub(crate) is_called: bool,
}

/// The first fields of `bpf_map_def`.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Map {
    /// Its symbol.
    pub(crate) name: String,
    /// `BPF_MAP_TYPE_*`
    pub(crate) kind: u32,
    /// Bytes of a key.
    pub(crate) key_size: u32,
    /// Bytes of a value.
    pub(crate) value_size: u32,
    /// Maximum number of entries.
    pub(crate) max_entries: u32,
}

impl Object {
    /// Reads an ELF file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("not an object file")?;
        ensure!(file.architecture() == object::Architecture::Bpf, "not for BPF");
        Ok(Self {
            functions: functions(&file)?,
            maps: maps(&file)?,
            license: license(&file)?,
            symbols: file
                .symbols()
                .filter_map(|symbol| symbol.name().ok().map(str::to_owned))
                .collect(),
        })
    }

    /// The symbols that contain this text, ignoring case. The text is in lower case.
    pub(crate) fn symbols_with(&self, part: &str) -> impl Iterator<Item = &str> {
        let names = self.symbols.iter().map(String::as_str);
        names.filter(move |name| name.to_lowercase().contains(part))
    }
}

fn functions(file: &object::File<'_>) -> Result<Vec<Function>> {
    let calls = stack::scan(file)?;
    let mut functions = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        functions.push(Function {
            // The alternate form omits hashes, which differ between compilers.
            name: format!("{:#}", rustc_demangle::demangle(symbol.name()?)),
            section: file.section_by_index(index)?.name()?.to_owned(),
            instructions: symbol.size() / INSTRUCTION,
            stack: calls.depths.get(symbol.name()?).copied().unwrap_or_default(),
            is_called: calls.called.contains(symbol.name()?),
        });
    }
    functions.sort_by_cached_key(|function| {
        (
            function.section == SUBPROGRAMS,
            function.section.clone(),
            function.name.clone(),
        )
    });
    Ok(functions)
}

fn maps(file: &object::File<'_>) -> Result<Vec<Map>> {
    ensure!(
        file.section_by_name(".maps").is_none(),
        "a map is defined in BTF, which this task cannot read: define it with #[map]"
    );
    let Some(section) = file.section_by_name(MAPS) else {
        return Ok(Vec::new());
    };
    let data = section.data()?;
    let mut maps = Vec::new();
    for symbol in file.symbols() {
        if symbol.section_index() == Some(section.index()) && symbol.kind() != SymbolKind::Section {
            let name = symbol.name()?;
            let start = usize::try_from(symbol.address())?;
            let definition = data.get(start..).unwrap_or_default();
            maps.push(map(name, definition).with_context(|| format!("map {name} is cut off"))?);
        }
    }
    maps.sort_by_cached_key(|map| map.name.clone());
    Ok(maps)
}

/// Reads `bpf_map_def`: type, key_size, value_size, max_entries. The other fields are ignored.
fn map(name: &str, definition: &[u8]) -> Option<Map> {
    let mut numbers = definition
        .chunks_exact(4)
        .filter_map(|bytes| bytes.try_into().ok());
    let mut next = || numbers.next().map(u32::from_le_bytes);
    Some(Map {
        name: name.to_owned(),
        kind: next()?,
        key_size: next()?,
        value_size: next()?,
        max_entries: next()?,
    })
}

fn license(file: &object::File<'_>) -> Result<Option<String>> {
    let Some(section) = file.section_by_name("license") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(section.data()?);
    Ok(Some(text.trim_end_matches('\0').to_owned()))
}

/// The name of `BPF_MAP_TYPE_*`, or the number of types that are not used.
pub(crate) fn map_kind(kind: u32) -> String {
    let name = match kind {
        1 => "hash",
        2 => "array",
        3 => "program array",
        4 => "perf event array",
        5 => "per-CPU hash",
        6 => "per-CPU array",
        9 => "LRU hash",
        10 => "LRU per-CPU hash",
        11 => "LPM trie",
        14 => "device map",
        16 => "CPU map",
        18 => "socket hash",
        25 => "device hash",
        27 => "ring buffer",
        _ => return format!("type {kind}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use object::write::{self, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolScope};

    use super::*;

    fn empty(architecture: Architecture) -> write::Object<'static> {
        write::Object::new(BinaryFormat::Elf, architecture, Endianness::Little)
    }

    /// Adds a function or, in a data section, a variable.
    fn add(object: &mut write::Object<'_>, section: &str, kind: SectionKind, name: &str, content: &[u8]) {
        let section = object.add_section(Vec::new(), section.into(), kind);
        let symbol = object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 0,
            kind: if kind == SectionKind::Text {
                SymbolKind::Text
            } else {
                SymbolKind::Data
            },
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Undefined,
            flags: SymbolFlags::None,
        });
        object.add_symbol_data(symbol, section, content, 8);
    }

    fn example() -> Object {
        let mut object = empty(Architecture::Bpf);
        let definition = [9_u32, 16, 32, 1000, 0, 0, 0].map(u32::to_le_bytes).concat();
        add(&mut object, ".text", SectionKind::Text, "helper", &[0; 24]);
        add(&mut object, "xdp", SectionKind::Text, "lb_xdp", &[0; 80]);
        add(&mut object, "maps", SectionKind::Data, "FLOWS", &definition);
        add(
            &mut object,
            "license",
            SectionKind::ReadOnlyData,
            "LICENSE",
            b"GPL\0",
        );
        Object::parse(&object.write().expect("a valid object")).expect("a readable object")
    }

    #[test]
    fn programs_are_listed_before_functions() {
        let functions: Vec<_> = example()
            .functions
            .into_iter()
            .map(|function| (function.name, function.section, function.instructions))
            .collect();
        let expected = [("lb_xdp", "xdp", 10), ("helper", ".text", 3)];
        assert_eq!(
            functions,
            expected.map(|(name, section, size)| (name.into(), section.into(), size))
        );
    }

    #[test]
    fn maps_are_read_from_their_definitions() {
        let object = example();
        let [map] = &object.maps[..] else {
            panic!("one map, not {:?}", object.maps);
        };
        assert_eq!(
            (map.name.as_str(), map_kind(map.kind)),
            ("FLOWS", "LRU hash".to_owned())
        );
        assert_eq!((map.key_size, map.value_size, map.max_entries), (16, 32, 1000));
        assert_eq!(map_kind(99), "type 99");
    }

    #[test]
    fn the_license_is_read() {
        assert_eq!(example().license.as_deref(), Some("GPL"));
    }

    #[test]
    fn symbols_are_found_in_any_case() {
        let object = example();
        assert_eq!(object.symbols_with("flow").collect::<Vec<_>>(), ["FLOWS"]);
        assert_eq!(object.symbols_with("panic").count(), 0);
    }

    #[test]
    fn objects_of_other_architectures_are_rejected() {
        let object = empty(Architecture::X86_64).write().expect("a sound object");
        assert!(Object::parse(&object).is_err());
        assert!(Object::parse(b"text").is_err());
    }
}
