//! Landlock: a second wall behind the mount namespace and the filter, and the one that keeps instances that share an
//! empty network namespace from each other's abstract sockets.
//!
//! Each right is asked for only where the running kernel knows it, so that the same rules hold as far as they can.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

/// Where an instance may do what, as paths that it sees itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Territory<'a> {
    /// Read, and execute.
    pub(crate) readable: Vec<&'a Path>,
    /// Read, write, make and remove files and directories.
    pub(crate) writable: Vec<&'a Path>,
    /// Write files that are there.
    pub(crate) devices: Vec<&'a Path>,
}

/// The version of Landlock that the kernel has; 0 if none.
pub(crate) fn version() -> i32 {
    let mut version = 0;
    for (number, abi) in [ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5, ABI::V6].into_iter().enumerate() {
        let supported = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .and_then(|ruleset| {
                if abi >= ABI::V4 { ruleset.handle_access(AccessNet::from_all(abi)) } else { Ok(ruleset) }
            })
            .and_then(
                |ruleset| if abi >= ABI::V6 { ruleset.scope(Scope::from_all(abi)) } else { Ok(ruleset) },
            )
            .and_then(Ruleset::create);
        if supported.is_ok() {
            version = i32::try_from(number).unwrap_or(0) + 1;
        }
    }
    version
}

/// Confines the calling process, and all that it will start, for good. It must have no-new-privileges set. Does
/// nothing below version 2, where renaming between directories could not be allowed.
pub(crate) fn restrict(version: i32, territory: &Territory<'_>) -> io::Result<()> {
    let abi = match version {
        i32::MIN..=1 => return Ok(()),
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6.. => ABI::V6,
    };
    confine(abi, territory).map_err(io::Error::other)
}

fn confine(abi: ABI, territory: &Territory<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    if abi >= ABI::V4 {
        // Handled and never granted: no TCP at all.
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if abi >= ABI::V6 {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    let mut created = ruleset.create()?;
    let devices = AccessFs::from_file(abi) & !(AccessFs::Execute | AccessFs::Truncate);
    let writable = AccessFs::from_all(abi)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let grants: [(&[&Path], BitFlags<AccessFs>); 3] = [
        (&territory.readable, AccessFs::from_read(abi)),
        (&territory.writable, writable & AccessFs::from_all(abi)),
        (&territory.devices, devices & AccessFs::from_all(abi)),
    ];
    for (paths, access) in grants {
        for path in paths {
            // Some rights have a meaning for directories only, and what is not there needs no rule.
            let Ok(metadata) = std::fs::metadata(path) else { continue };
            let access = if metadata.is_dir() { access } else { access & AccessFs::from_file(abi) };
            created = created.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
        }
    }
    created.restrict_self()?;
    Ok(())
}
