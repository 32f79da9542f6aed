//! What an instance sees of the file system: a read-only root that holds one installation of Postgres, and its own
//! volume, socket, configuration, shared memory and processes. Nothing else of the machine has a name in it.
//!
//! The warden lives in a mount namespace of its own. In it, it builds one bare root for each installation, once. An
//! instance's first process is born with a copy of that namespace, puts its own mounts into the root of its
//! installation, and makes it its root; the copy of everything else goes away with the old root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use roost_postgres::Installation;
use roost_postgres::module::ModuleName;
use roost_postgres::volume::VolumeKind;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};

use crate::sys;

/// The data directory, as an instance sees it.
pub(crate) const PGDATA: &str = "/pgdata";
/// The directory of its socket, as an instance sees it.
pub(crate) const SOCKET: &str = "/run/postgresql";
/// The directory of its configuration, as an instance sees it.
pub(crate) const CONFIGURATION: &str = "/etc/postgresql";
/// Its shared memory, as an instance sees it.
pub(crate) const SHARED_MEMORY: &str = "/dev/shm";
/// Its scratch directory, as an instance sees it.
pub(crate) const SCRATCH: &str = "/tmp";
/// The devices that an instance has.
pub(crate) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// The size of an instance's `/tmp`, which Postgres itself leaves empty.
const SCRATCH_BYTES: u64 = 16 << 20;

/// Where, on the stage, an instance's own control files of extensions are.
const EXTENSIONS: &str = "extensions";

/// The size of that place: some pages for each extension that may be listed.
const EXTENSIONS_BYTES: u64 = 4 << 20;

/// How long a mount of a volume is tried again while the kernel still takes down the one before: its processes are
/// gone, which the volume's lock proves, but a namespace goes away a moment after the last of them.
const STRAGGLING_MOUNT: Duration = Duration::from_secs(2);

/// The roots that the warden built, in its own mount namespace.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    path: PathBuf,
    /// What each installation shows below [`SCRATCH`], which an instance's own scratch directory would hide.
    hidden: BTreeMap<u16, Vec<PathBuf>>,
}

/// What one instance mounts into its root.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// The installation, which chooses the root.
    pub(crate) installation: &'a Installation,
    /// The extensions that the instance is to trust beside those that are trusted anyway.
    pub(crate) extensions: &'a [ModuleName],
    /// What the volume's files are.
    pub(crate) kind: VolumeKind,
    /// The template that a layer lies over.
    pub(crate) template: &'a Path,
    /// The volume's directory, which holds `upper` and `work`, or `pgdata`.
    pub(crate) volume: &'a Path,
    /// The namespace that shows the volume's owner as the instance's user; `None` if it is the same user.
    pub(crate) owners: Option<BorrowedFd<'a>>,
    /// Where its socket appears on the host.
    pub(crate) socket: &'a Path,
    /// Where its configuration lies on the host.
    pub(crate) configuration: &'a Path,
    /// The size of its shared memory directory.
    pub(crate) shared_memory_bytes: u64,
}

/// Gives the calling process a mount namespace of its own, whose mounts the host never sees.
pub(crate) fn leave_host() -> io::Result<()> {
    sys::unshare(libc::CLONE_NEWNS)?;
    keep_to_itself()
}

/// Takes the calling process's mount namespace, which is its own already, out of the host's sight.
pub(crate) fn keep_to_itself() -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

impl Stage {
    /// Builds the roots, over the directory `path`, in a process that called [`leave_host`].
    pub(crate) fn build(path: &Path, installations: &[Installation]) -> io::Result<Self> {
        make_directory(path, 0o700)?;
        temporary(path, 1 << 20, 0o700, MountFlags::NOEXEC)?;
        let mut stage = Self { path: path.to_owned(), hidden: BTreeMap::new() };
        for name in ["template", "volume", "merged", EXTENSIONS] {
            make_directory(&path.join(name), 0o700)?;
        }
        for installation in installations {
            build_root(&stage.root(installation.major), installation)?;
            let hidden = installation.visible_paths.iter().filter(|path| lies_below(path, SCRATCH)).cloned();
            stage.hidden.insert(installation.major, hidden.collect());
        }
        Ok(stage)
    }

    fn root(&self, major: u16) -> PathBuf {
        self.path.join(major.to_string())
    }

    /// Mounts what is the instance's own, and makes its root the calling process's. For a process in a copy of the
    /// warden's mount namespace and in a process namespace of its own.
    pub(crate) fn enter(&self, scene: &Scene<'_>) -> io::Result<()> {
        let major = scene.installation.major;
        let root = self.root(major);
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let harmless = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        match scene.kind {
            VolumeKind::Layer => self.mount_layer(scene, &inside(PGDATA))?,
            VolumeKind::Copy => {
                let tree = detached(&scene.volume.join("pgdata"), harmless)?;
                show_owners(&tree, scene)?;
                attach(&tree, &inside(PGDATA))?;
            }
        }
        attach(&detached(scene.socket, harmless)?, &inside(SOCKET))?;
        attach(&detached(scene.configuration, harmless | libc::MOUNT_ATTR_RDONLY)?, &inside(CONFIGURATION))?;
        temporary(&inside(SHARED_MEMORY), scene.shared_memory_bytes, 0o1777, MountFlags::NOEXEC)?;
        temporary(&inside(SCRATCH), SCRATCH_BYTES, 0o1777, MountFlags::NOEXEC)?;
        let hidden = self.hidden.get(&major).map_or(&[][..], Vec::as_slice);
        show_paths(hidden, &root, INSTALLATION, Path::new(SCRATCH))?;
        self.trust_extensions(scene, &root)?;
        mount_processes(&inside("/proc"))?;
        sys::pivot_into(&c_path(&root)?)
    }

    /// Does what the kernel could refuse of [`Stage::enter`], with nothing of an instance in it.
    pub(crate) fn rehearse(&self, major: u16) -> io::Result<()> {
        let root = self.root(major);
        mount_processes(&root.join("proc"))?;
        sys::pivot_into(&c_path(&root)?)
    }

    /// Puts control files that say so over those of the extensions that the instance is to trust. They lie in a file
    /// system of this one instance, which nobody else has a name for and which goes with its last mount.
    fn trust_extensions(&self, scene: &Scene<'_>, root: &Path) -> io::Result<()> {
        let files = scene.installation.trusting(scene.extensions)?;
        if files.is_empty() {
            return Ok(());
        }
        let folder = self.path.join(EXTENSIONS);
        temporary(&folder, EXTENSIONS_BYTES, 0o755, MountFlags::NOEXEC)?;
        let target = place_below(root, &fs::canonicalize(scene.installation.extensions())?);
        for file in files {
            let path = folder.join(&file.name);
            fs::write(&path, &file.content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444))?;
            attach(&detached(&path, INSTALLATION | libc::MOUNT_ATTR_NOEXEC)?, &target.join(&file.name))?;
        }
        Ok(())
    }

    fn mount_layer(&self, scene: &Scene<'_>, target: &Path) -> io::Result<()> {
        let harmless = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let template = detached(scene.template, harmless | libc::MOUNT_ATTR_RDONLY)?;
        show_owners(&template, scene)?;
        attach(&template, &self.path.join("template"))?;
        let volume = detached(scene.volume, harmless)?;
        show_owners(&volume, scene)?;
        attach(&volume, &self.path.join("volume"))?;
        self.mount_overlay(target, MountFlags::empty())
    }

    /// Lays the volume at `volume` over the template at `template`, both below the stage.
    fn mount_overlay(&self, target: &Path, flags: MountFlags) -> io::Result<()> {
        // Relative paths, so that no character of the run directory's own path means something to overlayfs.
        std::env::set_current_dir(&self.path)?;
        let options: &CStr =
            c"lowerdir=template,upperdir=volume/upper,workdir=volume/work,index=on,metacopy=on,redirect_dir=on";
        let flags = flags | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let began = Instant::now();
        loop {
            match mount("overlay", target, "overlay", flags, options) {
                Err(rustix::io::Errno::BUSY) if began.elapsed() < STRAGGLING_MOUNT => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => return Ok(result?),
            }
        }
    }

    /// Shows a stopped layer's files merged and read-only, with their owners as on disk, and returns where. For a
    /// process with a mount namespace of its own, which holds the volume's lock.
    pub(crate) fn merge(&self, template: &Path, volume: &Path) -> io::Result<PathBuf> {
        attach(&detached(template, libc::MOUNT_ATTR_RDONLY)?, &self.path.join("template"))?;
        attach(&detached(volume, 0)?, &self.path.join("volume"))?;
        let merged = self.path.join("merged");
        self.mount_overlay(&merged, MountFlags::RDONLY)?;
        Ok(merged)
    }
}

/// What the kernel says of a volume that is mounted elsewhere, by `index=on`.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

fn show_owners(tree: &OwnedFd, scene: &Scene<'_>) -> io::Result<()> {
    scene.owners.map_or(Ok(()), |owners| sys::map_owners(tree.as_fd(), owners))
}

fn mount_processes(place: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("proc", place, "proc", flags, c"hidepid=invisible,subset=pid")?)
}

/// How an installation is mounted: to be read and executed.
const INSTALLATION: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

fn build_root(root: &Path, installation: &Installation) -> io::Result<()> {
    make_directory(root, 0o755)?;
    temporary(root, 1 << 20, 0o755, MountFlags::empty())?;
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for directory in ["/proc", SHARED_MEMORY, SCRATCH, PGDATA, SOCKET, CONFIGURATION] {
        make_directories(&inside(Path::new(directory)))?;
    }
    fs::write(inside(Path::new("/etc/hosts")), "127.0.0.1 localhost\n::1 localhost\n")?;
    // Where the machine's own /lib and the like are links into /usr, so are the instance's: the loader's path in every
    // program goes through them.
    for name in ["lib", "lib32", "lib64", "libx32"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            symlink(target, root.join(name))?;
        }
    }
    for device in DEVICES {
        show(
            Path::new(device),
            &inside(Path::new(device)),
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        )?;
    }
    show_paths(&installation.visible_paths, root, INSTALLATION, Path::new("/"))?;
    let tree = open_tree(CWD, root, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::restrict_mount(tree.as_fd(), libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, false)
}

/// Whether a path of the host, or what it leads to, lies in a directory.
fn lies_below(path: &Path, directory: &str) -> bool {
    path.starts_with(directory) || fs::canonicalize(path).is_ok_and(|real| real.starts_with(directory))
}

/// Shows paths of the host at the same places below `root`: links as links, and what they lead to, as far as it lies in
/// `within`, as mounts.
fn show_paths(paths: &[PathBuf], root: &Path, attributes: u64, within: &Path) -> io::Result<()> {
    let mut real = BTreeSet::new();
    for path in paths {
        match follow(path, root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            followed => {
                real.insert(followed?);
            }
        }
    }
    for path in real.iter().filter(|path| path.starts_with(within)) {
        // What lies inside another one is shown with that.
        if !path.ancestors().skip(1).any(|above| real.contains(above)) {
            show(path, &place_below(root, path), attributes)?;
        }
    }
    Ok(())
}

/// Makes the links that a path consists of, one after the other, and returns where they end. Every place below `root`
/// is named by its real path, so that no link leads out of it.
fn follow(path: &Path, root: &Path) -> io::Result<PathBuf> {
    const MAX_LINKS: usize = 8;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { break };
        let parent = fs::canonicalize(parent)?;
        let here = parent.join(name);
        if !fs::symlink_metadata(&here)?.is_symlink() {
            return Ok(here);
        }
        let target = fs::read_link(&here)?;
        let link = place_below(root, &here);
        if let Some(above) = link.parent() {
            make_directories(above)?;
        }
        match symlink(&target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => path = parent.join(target),
        }
    }
    Err(io::Error::other(format!("{} is more than {MAX_LINKS} links away", path.display())))
}

fn place_below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn show(from: &Path, to: &Path, attributes: u64) -> io::Result<()> {
    if fs::metadata(from)?.is_dir() {
        make_directories(to)?;
    } else {
        if let Some(parent) = to.parent() {
            make_directories(parent)?;
        }
        fs::write(to, "")?;
    }
    attach(&detached(from, attributes)?, to)
}

/// A copy of the mount at `path`, from there down, that has no place yet.
fn detached(path: &Path, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let below = OpenTreeFlags::AT_RECURSIVE;
    let (tree, recursive) = match open_tree(CWD, path, flags) {
        // In a user namespace, what the host mounted over parts of a mount cannot be left away.
        Err(rustix::io::Errno::INVAL) => (open_tree(CWD, path, flags | below), true),
        tree => (tree, false),
    };
    let tree = tree.map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", path.display()))
    })?;
    if attributes != 0 {
        sys::restrict_mount(tree.as_fd(), attributes, recursive)?;
    }
    Ok(tree)
}

fn attach(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    move_mount(tree, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn temporary(path: &Path, bytes: u64, mode: u32, flags: MountFlags) -> io::Result<()> {
    let options = c_text(&format!("size={bytes},mode={mode:o}"))?;
    mount("tmpfs", path, "tmpfs", flags | MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn make_directories(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn c_text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::other)
}

/// A path for a system call.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
