//! Compressed swap in memory for the length of a measurement.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::keeper::Keeper;

/// Capacity of the device before compression, in bytes.
const CAPACITY: u64 = 4 << 30;

/// `$1` is the device's number, `$2` whether it was made for this run.
const REMOVE: &str = r#"
swapoff "/dev/zram$1" 2>/dev/null
echo 1 >"/sys/block/zram$1/reset"
if [ "$2" = made ]; then echo "$1" >/sys/class/zram-control/hot_remove; fi
"#;

/// A zram device that is in use as swap until this is dropped, or this process is killed.
#[derive(Debug)]
pub(crate) struct Zram {
    number: u32,
    _keeper: Keeper,
}

/// How full a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    /// What was swapped out, in bytes.
    pub(crate) original: u64,
    /// The memory that it takes, allocator's overhead included, in bytes.
    pub(crate) used: u64,
}

impl Fill {
    /// Memory for each byte that was swapped out; nothing swapped out is nothing used.
    pub(crate) fn ratio(self) -> f64 {
        if self.original == 0 { 0.0 } else { self.used as f64 / self.original as f64 }
    }
}

impl Zram {
    /// Takes an unused device, or makes one, and swaps to it. Fails where that is not possible, and on a machine that
    /// swaps already: its other swap would be measured too.
    pub(crate) fn start() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "this is not root");
        let swaps = fs::read_to_string("/proc/swaps").context("no /proc/swaps")?;
        ensure!(swaps.lines().count() < 2, "this machine has swap of its own");
        let (number, origin) = match unused_device() {
            Some(number) => (number, "found"),
            None => (made_device()?, "made"),
        };
        let keeper = Keeper::start(REMOVE, &[&number.to_string(), origin])?;
        let zram = Self { number, _keeper: keeper };
        fs::write(zram.file("disksize"), CAPACITY.to_string())
            .context("cannot set the size of a zram device")?;
        let device = format!("/dev/zram{number}");
        run(Command::new("mkswap").arg(&device))?;
        run(Command::new("swapon").args(["--priority", "100", &device]))?;
        Ok(zram)
    }

    /// How full the device is now.
    pub(crate) fn fill(&self) -> Result<Fill> {
        let text = fs::read_to_string(self.file("mm_stat"))?;
        let mut fields = text.split_whitespace().map(str::parse);
        let (Some(Ok(original)), Some(Ok(_)), Some(Ok(used))) = (fields.next(), fields.next(), fields.next())
        else {
            bail!("mm_stat is {text:?}");
        };
        Ok(Fill { original, used })
    }

    /// The name of the compressor.
    pub(crate) fn compressor(&self) -> String {
        let all = fs::read_to_string(self.file("comp_algorithm")).unwrap_or_default();
        let chosen = all.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        chosen.map_or_else(String::new, |(name, _)| name.to_owned())
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{name}", self.number))
    }
}

fn unused_device() -> Option<u32> {
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    devices.filter_map(|device| device.file_name().to_str()?.strip_prefix("zram")?.parse().ok()).find(
        |number| {
            let size = fs::read_to_string(format!("/sys/block/zram{number}/disksize"));
            size.is_ok_and(|size| size.trim() == "0")
        },
    )
}

fn made_device() -> Result<u32> {
    // Reading this file makes a device and tells its number.
    let number = fs::read_to_string("/sys/class/zram-control/hot_add").context("the kernel has no zram")?;
    Ok(number.trim().parse()?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_compressed_swap_counts_by_what_it_takes() {
        assert_eq!(Fill { original: 0, used: 4096 }.ratio(), 0.0);
        assert_eq!(Fill { original: 400, used: 100 }.ratio(), 0.25);
    }
}
