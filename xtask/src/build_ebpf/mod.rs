//! `cargo xtask build-ebpf`: builds the kernel programs and checks the objects before they are
//! loaded.
//!
//! Cargo decides whether there is anything to build; the checks run every time.

pub(crate) mod budget;
mod inspect;
mod stack;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};

use crate::setup::{self, Tools};
use crate::{command, workspace};
use inspect::Object;

/// Functions that LLVM calls if it does not expand memory operations into single instructions.
const MEMORY_LOOPS: [&str; 4] = ["memset", "memcpy", "memmove", "memcmp"];

/// Arguments of `build-ebpf`.
#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Write the current instruction counts and stack sizes as the new budget
    #[arg(long)]
    update_budget: bool,
}

/// Builds the objects, lists their contents, and checks them.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    compile(&setup::require()?, &[])?;
    let object = inspect(&workspace::ebpf_object())?;
    // Only the benchmark loads it, so it has no budget.
    inspect(&workspace::ebpf_bench_object())?;
    let sections = [
        (budget::INSTRUCTIONS, budget::instructions(&object)),
        (budget::STACK, budget::stack(&object)),
    ];
    if arguments.update_budget {
        return sections
            .into_iter()
            .try_for_each(|(section, counts)| budget::replace(section, counts));
    }
    let mut complaints = Vec::new();
    for (section, counts) in sections {
        complaints.extend(budget::complaints(section, &counts)?);
    }
    if !complaints.is_empty() {
        bail!(
            "{}\nif this is intended: `cargo xtask build-ebpf --update-budget`",
            complaints.join("\n")
        );
    }
    Ok(())
}

/// Builds and checks the objects without listing them, for other tasks.
pub(crate) fn build() -> Result<()> {
    compile(&setup::require()?, &[])?;
    for path in [workspace::ebpf_object(), workspace::ebpf_bench_object()] {
        check(&read(&path)?).with_context(|| format!("in {}", path.display()))?;
    }
    Ok(())
}

/// Lists the contents of an object, and checks it.
fn inspect(path: &Path) -> Result<Object> {
    let object = read(path)?;
    print(path, &object);
    check(&object).with_context(|| format!("in {}", path.display()))?;
    Ok(object)
}

fn read(path: &Path) -> Result<Object> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Object::parse(&bytes).with_context(|| format!("in {}", path.display()))
}

/// Compiles the objects, with further arguments for cargo.
pub(crate) fn compile(tools: &Tools, arguments: &[&str]) -> Result<()> {
    let architecture = env::consts::ARCH;
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "-Cdebuginfo=2".to_owned(),
        // BTF: the layouts of maps and the signatures of functions. Without it the kernel rejects
        // out-of-line functions.
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        // LLVM fills and copies memory by single instructions. Otherwise it emits loops over bytes,
        // and the verifier walks through each round.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    let mut cargo = tools.toolchain.cargo();
    cargo
        .current_dir(workspace::ebpf())
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"))
        .env("PATH", path_with_linker(tools)?)
        .args([
            "build",
            "--release",
            "--locked",
            "--target=bpfel-unknown-none",
            "-Zbuild-std=core",
        ])
        .arg("--target-dir")
        .arg(workspace::root().join("target/ebpf"))
        .args(arguments);
    command::run(&mut cargo)
}

/// `PATH` with the directory of bpf-linker first, because rustc looks for the linker in `PATH`.
fn path_with_linker(tools: &Tools) -> Result<OsString> {
    let directory = tools.linker.parent().context("bpf-linker is in no directory")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(directory.to_owned()).chain(env::split_paths(&path));
    env::join_paths(directories).context("PATH cannot be extended")
}

fn check(object: &Object) -> Result<()> {
    // Kernel programs cannot panic. A program that contains panic code does not load, with a
    // misleading message.
    let panics: Vec<_> = object.symbols_with("panic").collect();
    if !panics.is_empty() {
        bail!("the programs must not panic, but contain: {}", panics.join(", "));
    }
    for function in &object.functions {
        if function.is_called && MEMORY_LOOPS.contains(&function.name.as_str()) {
            bail!(
                "the programs fill or copy memory byte by byte: they call {}",
                function.name
            );
        }
        if function.stack > stack::LIMIT {
            bail!(
                "{} and what it calls take {} bytes of stack: kernels before 6.4 reject more than {}",
                function.name,
                function.stack,
                stack::LIMIT
            );
        }
    }
    let license = object.license.as_deref().unwrap_or_default();
    if !license.contains("GPL") {
        bail!("the license is {license:?}: the kernel denies it the helpers for GPL-compatible programs");
    }
    Ok(())
}

fn print(path: &Path, object: &Object) {
    println!("{}", path.display());
    let mut programs = table(&["program", "section", "instructions", "stack"], 2);
    for function in &object.functions {
        programs.add_row([
            &function.name,
            &function.section,
            &function.instructions.to_string(),
            &function.stack.to_string(),
        ]);
    }
    println!("{programs}");
    if object.maps.is_empty() {
        println!("no maps");
        return;
    }
    let mut maps = table(&["map", "kind", "key", "value", "entries"], 2);
    for map in &object.maps {
        let numbers = [map.key_size, map.value_size, map.max_entries].map(|number| number.to_string());
        let [key, value, entries] = numbers;
        maps.add_row([map.name.clone(), inspect::map_kind(map.kind), key, value, entries]);
    }
    println!("{maps}");
}

/// A table whose columns contain numbers from the given one on.
fn table(header: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(numbers_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
