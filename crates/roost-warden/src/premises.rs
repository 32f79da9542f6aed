//! An instance's directory below RUN: its socket, its configuration, and a note for the next warden.
//!
//! RUN itself belongs to root and is sticky, and the node may make its own files there. A name that the warden wants is
//! therefore taken away from whoever was first, and from then on belongs to the warden.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat};
use serde::{Deserialize, Serialize};

use roost_postgres::settings::{self, InstanceSettings};
use roost_postgres::volume::VolumeId;

use crate::protocol::InstanceRecord;

/// The name of the socket in its directory.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The longest note that is read, in bytes.
const MAX_NOTE: u64 = 64 * 1024;

/// The directory below which every instance has one of its own.
#[derive(Debug, Clone)]
pub(crate) struct RunDirectory {
    /// The directory itself.
    pub(crate) path: PathBuf,
    /// Who the node is; `None` if the warden is nobody else.
    pub(crate) node: Option<(u32, u32)>,
}

/// What the next warden must know to adopt an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The instance, as this warden's node saw it.
    pub(crate) record: InstanceRecord,
    /// Its user id, where it has one of its own.
    pub(crate) uid: Option<u32>,
    /// When its first process began, in clock ticks since boot: a process id alone may belong to another by now.
    pub(crate) began: u64,
    /// Whether it accepted connections.
    pub(crate) ready: bool,
    /// Where in the log its own lines begin, in bytes.
    pub(crate) log_offset: u64,
}

impl RunDirectory {
    fn instance(&self, volume: VolumeId) -> PathBuf {
        self.path.join(volume.as_str())
    }

    /// Where an instance's socket appears.
    pub(crate) fn socket(&self, volume: VolumeId) -> PathBuf {
        self.instance(volume).join("s")
    }

    /// Where an instance's configuration lies.
    pub(crate) fn configuration(&self, volume: VolumeId) -> PathBuf {
        self.instance(volume).join("c")
    }

    /// Makes an instance's directory anew, with its configuration in it. Its user may make files beside its socket, for
    /// as long as it starts.
    pub(crate) fn create(
        &self,
        volume: VolumeId,
        uid: Option<u32>,
        major: u16,
        settings: &InstanceSettings,
    ) -> io::Result<()> {
        self.remove(volume)?;
        let instance = self.instance(volume);
        fs::DirBuilder::new().mode(0o711).create(&instance)?;
        let socket = self.socket(volume);
        fs::DirBuilder::new().mode(0o700).create(&socket)?;
        if let Some(uid) = uid {
            chown(&socket, Some(uid), Some(uid))?;
        }
        let configuration = self.configuration(volume);
        fs::DirBuilder::new().mode(0o755).create(&configuration)?;
        for (name, text) in [(settings::HBA_FILE, settings::hba()), (settings::IDENT_FILE, settings::ident())]
        {
            write_file(&configuration.join(name), text.as_bytes(), 0o644)?;
        }
        self.configure(volume, major, settings)
    }

    /// Replaces an instance's configuration.
    pub(crate) fn configure(
        &self,
        volume: VolumeId,
        major: u16,
        settings: &InstanceSettings,
    ) -> io::Result<()> {
        let directory = self.configuration(volume);
        let (new, path) = (directory.join("new"), directory.join(settings::CONF_FILE));
        write_file(&new, settings::postgresql_conf(major, settings).as_bytes(), 0o644)?;
        fs::rename(new, path)
    }

    /// Gives an instance's socket to the node and takes it, and the directory around it, from the instance.
    ///
    /// The directory was the instance's to write until now, so it is closed first, and what is then found in the
    /// socket's place is looked at before it is touched.
    pub(crate) fn seal(&self, volume: VolumeId, uid: Option<u32>) -> io::Result<()> {
        let path = self.socket(volume);
        let directory =
            rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        // With one user for all there is nobody to take it from; its directory keeps everybody else out.
        let owners = self.node.zip(uid);
        if let Some(((_, node_gid), _)) = owners {
            fchown(&directory, Some(0), Some(node_gid))?;
            File::from(directory.try_clone()?).set_permissions(fs::Permissions::from_mode(0o710))?;
        }
        let socket = openat(
            &directory,
            SOCKET_NAME,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = fstat(&socket)?;
        let is_owner_known = owners.is_none_or(|((node_uid, _), uid)| [uid, node_uid].contains(&stat.st_uid));
        if !FileType::from_raw_mode(stat.st_mode).is_socket() || !is_owner_known {
            return Err(io::Error::other("what is in the socket's place is not the instance's socket"));
        }
        fs::set_permissions(
            format!("/proc/self/fd/{}", socket.as_raw_fd()),
            fs::Permissions::from_mode(0o600),
        )?;
        if let Some(((node_uid, node_gid), _)) = owners {
            let (owner, group) = (Uid::from_raw(node_uid), Gid::from_raw(node_gid));
            chownat(&socket, c"", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// Writes down what the next warden must know.
    pub(crate) fn write_note(&self, note: &Note) -> io::Result<()> {
        let instance = self.instance(note.record.volume);
        let new = instance.join("new");
        write_file(&new, &serde_json::to_vec(note)?, 0o600)?;
        fs::rename(new, instance.join("instance.json"))
    }

    /// What an earlier warden wrote down; `None` if there is nothing that can be read, or another user wrote it.
    pub(crate) fn read_note(&self, volume: VolumeId) -> Option<Note> {
        use std::io::Read;
        let path = self.instance(volume).join("instance.json");
        let own = rustix::process::geteuid().as_raw();
        let owned =
            |path: &std::path::Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.uid() == own);
        if !owned(&self.instance(volume)) || !owned(&path) {
            return None;
        }
        let mut text = String::new();
        File::open(path).ok()?.take(MAX_NOTE).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok().filter(|note: &Note| note.record.volume == volume)
    }

    /// Every volume that has a directory here.
    pub(crate) fn list(&self) -> Vec<VolumeId> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes an instance's directory, or whatever is in its place.
    pub(crate) fn remove(&self, volume: VolumeId) -> io::Result<()> {
        let path = self.instance(volume);
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn write_file(path: &std::path::Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode).custom_flags(libc::O_NOFOLLOW);
    options.open(path)?.write_all(bytes)
}
