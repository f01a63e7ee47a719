//! The kernel programs: the embedded object file and how it is loaded.

pub(super) mod error;
pub(super) mod layouts;
pub mod program;
pub mod settings;

use std::path::Path;

use aya::maps::Array;
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use lb_common::layout::map;
use lb_common::settings::LoadedSettings;
use lb_common::settings::SourcePorts;

use self::error::LoadError;
use self::layouts::{MAPS, check_layouts, sizes};
use self::settings::{Settings, loaded_settings};
use super::probe::{self, Helper};

/// Flag of `bpf_fib_lookup` (include/uapi/linux/bpf.h, Linux 6.3).
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 4;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// Creates the maps, pins them in `directory` and loads all programs. Maps that are already pinned
/// there are reused.
pub fn load(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let mut ebpf = open(settings, directory)?;
    load_programs(&mut ebpf)?;
    publish(&mut ebpf, loaded_settings(settings))?;
    Ok(ebpf)
}

/// Like [`load`], but loads no programs. The caller loads them with [`load_program`].
pub fn prepare(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let mut ebpf = open(settings, directory)?;
    publish(&mut ebpf, loaded_settings(settings))?;
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

fn open(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let loaded = loaded_settings(settings);
    let lifetimes = loaded.lifetimes.rows();
    let address4 = loaded.node_address4.to_word();
    let address6 = loaded.node_address6.to_words();
    let SourcePorts { all, local } = settings.source_ports;
    let ports = [all.first, all.count, local.first, local.count];
    // If the probe fails, loading the programs reports why.
    let sets_errors =
        u32::from(probe::helper(probe::Program::CgroupSockAddr, Helper::SetRetval).unwrap_or(true));

    let redirects_locally = u32::from(settings.redirects_locally);
    let skip_neighbour = if probe::kernel_at_least(6, 3) {
        BPF_FIB_LOOKUP_SKIP_NEIGH
    } else {
        0
    };

    let mut loader = EbpfLoader::new();
    loader
        // The programs access no kernel structures, so the kernel's types, hundreds of thousands of
        // them, are not needed.
        .btf(None)
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("LIFETIMES", &lifetimes, true)
        .override_global("NODE_ADDRESS4", &address4, true)
        .override_global("NODE_ADDRESS6", &address6, true)
        .override_global("JIFFIES_PER_SECOND", &loaded.jiffies_per_second, true)
        .override_global("NODE_NAMESPACE", &settings.node_namespace, true)
        .override_global("ONLY_NODE", &loaded.only_node_sockets, true)
        .override_global("KEEP_REMOVED", &loaded.keeps_removed, true)
        .override_global("LOCAL_REDIRECT", &redirects_locally, true)
        .override_global("SETS_ERRORS", &sets_errors, true)
        .override_global("SKIP_NEIGHBOUR", &skip_neighbour, true)
        .override_global("PORTS", &ports, true)
        .override_global("HASH_SEED", &settings.hash_seed, true);
    for (name, entries) in sizes(settings) {
        loader.map_max_entries(name, entries);
    }
    std::fs::create_dir_all(directory).map_err(|source| LoadError::PinDirectory {
        path: directory.to_owned(),
        source,
    })?;
    check_layouts(OBJECT, settings, directory)?;
    for map in MAPS {
        loader.map_pin_path(map.name, directory.join(map.name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

/// Writes what the programs were loaded with, for the commands.
fn publish(ebpf: &mut Ebpf, loaded: LoadedSettings) -> Result<(), LoadError> {
    let Some(map) = ebpf.map_mut(map::SETTINGS) else {
        return Ok(());
    };
    Array::try_from(map)
        .and_then(|mut settings| settings.set(0, loaded, 0))
        .map_err(|error| LoadError::Object(Box::new(error.into())))
}

/// Loads every program that the agent attaches in any configuration. The empty programs belong to
/// the benchmark.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut() {
        let is_loaded_later =
            program::LAYER3.contains(&name) || [program::XDP, program::TC_FROM_REASSEMBLY].contains(&name);
        if !name.starts_with(program::EMPTY_PREFIX) && !is_loaded_later {
            load_program(name, program)?;
        }
    }
    Ok(())
}
