//! The kernel programs: the embedded object file and how it is loaded.

pub(super) mod error;
pub(super) mod layouts;
pub mod program;
pub mod settings;

use std::path::Path;

use aya::maps::Array;
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use lb_common::map;
use lb_common::settings::LoadedSettings;

use self::error::LoadError;
use self::layouts::{check_layouts, sizes};
use self::settings::{Settings, loaded_settings};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// Creates the maps, pins them in `directory` and loads all programs. Maps that are already pinned
/// there are reused.
pub fn load(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let mut ebpf = prepare(settings, directory)?;
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// The part of [`load`] that comes before the programs: creates and pins the maps, and publishes
/// the settings. [`load_program`] loads the programs one by one.
pub fn prepare(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let loaded = loaded_settings(settings);
    let mut ebpf = open(settings, &loaded, directory)?;
    publish(&mut ebpf, loaded)?;
    Ok(ebpf)
}

/// Loads a program that is not loaded yet.
pub fn load_program(name: &str, program: &mut Program) -> Result<(), LoadError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Ok(()),
    }
    .map_err(|error| LoadError::program(name, error))
}

fn open(settings: &Settings, loaded: &LoadedSettings, directory: &Path) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    loader
        // The programs access no kernel structures, so the kernel's types, hundreds of thousands of
        // them, are not needed.
        .btf(None)
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("LOADED_SETTINGS", loaded, true);
    for (name, entries) in sizes(settings) {
        loader.map_max_entries(name, entries);
    }
    std::fs::create_dir_all(directory).map_err(|source| LoadError::PinDirectory {
        path: directory.to_owned(),
        source,
    })?;
    check_layouts(OBJECT, settings, directory)?;
    for map in map::ALL {
        loader.map_pin_path(map.name, directory.join(map.name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

/// Writes what the programs were loaded with, for the commands.
fn publish(ebpf: &mut Ebpf, loaded: LoadedSettings) -> Result<(), LoadError> {
    let Some(map) = ebpf.map_mut(map::SETTINGS.name) else {
        return Ok(());
    };
    Array::try_from(map)
        .and_then(|mut settings| settings.set(0, loaded, 0))
        .map_err(|error| LoadError::Object(Box::new(error.into())))
}

/// Loads every program that the agent attaches in any configuration.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut() {
        let is_loaded_later =
            program::LAYER3.contains(&name) || [program::XDP, program::TC_FROM_REASSEMBLY].contains(&name);
        if !is_loaded_later {
            load_program(name, program)?;
        }
    }
    Ok(())
}
