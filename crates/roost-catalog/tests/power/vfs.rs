//! SQLite's way to a [`SimulatedDisk`]: a VFS whose files live there.
//!
//! What is in a file goes to the simulated disk. Locks and shared memory stay with SQLite's own VFS, on the real file of
//! the same name, which holds nothing: they belong to processes and never outlive a power cut.

#![allow(unsafe_code, reason = "SQLite's VFS is an interface of C")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, Once, PoisonError};

use roost_durable::Disk;
use roost_durable::simulated::{Inode, SimulatedDisk};
use rusqlite::ffi;

/// What SQLite's own VFS says of a disk too: a write harms no byte beside it.
const CHARACTERISTICS: c_int = ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE;
const SECTOR_BYTES: c_int = 4_096;

/// The disks of this process, by the real directory that stands for their root.
static DISKS: Mutex<Vec<(PathBuf, Arc<SimulatedDisk>)>> = Mutex::new(Vec::new());

/// From here on, SQLite keeps files of `directory` (its real path) on `disk`. Files elsewhere cannot be opened.
pub(crate) fn mount(directory: &Path, disk: &Arc<SimulatedDisk>) {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(register);
    disks().push((directory.to_owned(), Arc::clone(disk)));
}

/// Forgets the disk of a directory.
pub(crate) fn unmount(directory: &Path) {
    disks().retain(|(mounted, _)| mounted != directory);
}

fn disks() -> std::sync::MutexGuard<'static, Vec<(PathBuf, Arc<SimulatedDisk>)>> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disk of a file, and the file's path there.
///
/// # Safety
/// `name` is a C string.
unsafe fn place(name: *const c_char) -> Option<(Arc<SimulatedDisk>, PathBuf)> {
    // SAFETY: the caller's promise.
    let name = Path::new(unsafe { CStr::from_ptr(name) }.to_str().ok()?);
    let disks = disks();
    let (_, disk) = disks.iter().find(|(directory, _)| name.parent() == Some(directory))?;
    Some((Arc::clone(disk), Path::new("/").join(name.file_name()?)))
}

/// An open file. SQLite gives the memory, with room for a file of its own VFS behind it.
#[repr(C)]
struct SimulatedFile {
    base: ffi::sqlite3_file,
    disk: Arc<SimulatedDisk>,
    inode: Inode,
    /// The file was made by this opening: as SQLite's own VFS does, its first sync makes its name durable too.
    is_name_new: bool,
    /// The real file, for locks and shared memory; null for files that take none.
    locks: *mut ffi::sqlite3_file,
}

fn register() {
    // SAFETY: SQLite's default VFS lives as long as the process, and so does what is leaked here. Its methods that are
    // kept look at nothing of the VFS that is changed.
    unsafe {
        let real = ffi::sqlite3_vfs_find(ptr::null());
        let room = c_int::try_from(size_of::<SimulatedFile>()).unwrap();
        let vfs = ffi::sqlite3_vfs {
            szOsFile: room + (*real).szOsFile,
            pNext: ptr::null_mut(),
            zName: c"simulated".as_ptr(),
            pAppData: real.cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            ..*real
        };
        let code = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 1);
        assert_eq!(code, ffi::SQLITE_OK);
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives room for `szOsFile` bytes, and a name unless the file is a temporary one. A file without
    // methods is not closed.
    unsafe {
        (*file).pMethods = ptr::null();
        let Some((disk, path)) = (!name.is_null()).then(|| place(name)).flatten() else {
            return ffi::SQLITE_CANTOPEN;
        };
        let is_database = flags & ffi::SQLITE_OPEN_MAIN_DB != 0;
        let found = disk.open(&path);
        let made = match found {
            Ok(Some(inode)) => Ok((inode, false)),
            Ok(None) if flags & ffi::SQLITE_OPEN_CREATE != 0 => disk.create(&path).map(|inode| (inode, true)),
            Ok(None) => return ffi::SQLITE_CANTOPEN,
            Err(error) => Err(error),
        };
        let Ok((inode, is_name_new)) = made else { return ffi::SQLITE_IOERR };
        let mut locks: *mut ffi::sqlite3_file = ptr::null_mut();
        if is_database {
            let real: *mut ffi::sqlite3_vfs = (*vfs).pAppData.cast();
            locks = file.byte_add(size_of::<SimulatedFile>());
            let code = match (*real).xOpen {
                Some(open) => open(real, name, locks, flags, out_flags),
                None => ffi::SQLITE_CANTOPEN,
            };
            if code != ffi::SQLITE_OK {
                return code;
            }
        } else if !out_flags.is_null() {
            *out_flags = flags;
        }
        let base = ffi::sqlite3_file { pMethods: &raw const METHODS };
        ptr::write(file.cast(), SimulatedFile { base, disk, inode, is_name_new, locks });
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_names: c_int) -> c_int {
    // SAFETY: SQLite gives a name.
    let Some((disk, path)) = (unsafe { place(name) }) else { return ffi::SQLITE_IOERR_DELETE };
    match disk.remove(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return ffi::SQLITE_IOERR_DELETE_NOENT,
        Err(_) => return ffi::SQLITE_IOERR_DELETE,
    }
    code(if sync_names == 0 { Ok(()) } else { disk.sync_dir(Path::new("/")) })
}

unsafe extern "C" fn access(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    answer: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a name and a place for the answer.
    unsafe {
        let Some((disk, path)) = place(name) else { return ffi::SQLITE_IOERR_ACCESS };
        let exists = disk.open(&path).and_then(|found| match found {
            // SQLite's own VFS says that an empty file does not exist.
            Some(inode) if flags == ffi::SQLITE_ACCESS_EXISTS => Ok(disk.length(inode)? > 0),
            found => Ok(found.is_some()),
        });
        match exists {
            Ok(exists) => {
                *answer = c_int::from(exists);
                ffi::SQLITE_OK
            }
            Err(_) => ffi::SQLITE_IOERR_ACCESS,
        }
    }
}

fn code(result: std::io::Result<()>) -> c_int {
    result.map_or(ffi::SQLITE_IOERR, |()| ffi::SQLITE_OK)
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// # Safety
/// `file` was opened by [`open`] and not closed yet, and SQLite uses it on one thread at a time.
unsafe fn simulated<'a>(file: *mut ffi::sqlite3_file) -> &'a mut SimulatedFile {
    // SAFETY: the caller's promise.
    unsafe { &mut *file.cast() }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once; both files go with it.
    unsafe {
        let locks = simulated(file).locks;
        let closed = real(locks, |methods| methods.xClose.map(|close| close(locks)));
        ptr::drop_in_place(file.cast::<SimulatedFile>());
        closed
    }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite gives an open file and `length` bytes to write to.
    let (file, bytes) = unsafe {
        let length = usize::try_from(length).unwrap_or(0);
        (simulated(file), std::slice::from_raw_parts_mut(to.cast::<u8>(), length))
    };
    match file.disk.read_at(file.inode, bytes, offset.cast_unsigned()) {
        Ok(count) if count == bytes.len() => ffi::SQLITE_OK,
        Ok(count) => {
            bytes[count..].fill(0);
            ffi::SQLITE_IOERR_SHORT_READ
        }
        Err(_) => ffi::SQLITE_IOERR_READ,
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite gives an open file and `length` bytes to read from.
    let (file, bytes) = unsafe {
        let length = usize::try_from(length).unwrap_or(0);
        (simulated(file), std::slice::from_raw_parts(from.cast::<u8>(), length))
    };
    code(file.disk.write_at(file.inode, bytes, offset.cast_unsigned()))
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { simulated(file) };
    code(file.disk.set_length(file.inode, length.cast_unsigned()))
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { simulated(file) };
    let synced = file.disk.sync(&file.inode).and_then(|()| {
        if std::mem::take(&mut file.is_name_new) { file.disk.sync_dir(Path::new("/")) } else { Ok(()) }
    });
    code(synced)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite gives an open file and a place for the answer.
    unsafe {
        let file = simulated(file);
        code(file.disk.length(file.inode).map(|length| *size = length.cast_signed()))
    }
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    SECTOR_BYTES
}

unsafe extern "C" fn characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    CHARACTERISTICS
}

/// Calls a method of a real file; a file without one needs no locks.
///
/// # Safety
/// `locks` is null or open.
unsafe fn real(
    locks: *mut ffi::sqlite3_file,
    call: impl FnOnce(&ffi::sqlite3_io_methods) -> Option<c_int>,
) -> c_int {
    if locks.is_null() {
        return ffi::SQLITE_OK;
    }
    // SAFETY: an open file has methods.
    call(unsafe { &*(*locks).pMethods }).unwrap_or(ffi::SQLITE_IOERR)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite gives an open file, here and below.
    unsafe {
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xLock.map(|lock| lock(locks, level)))
    }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as in `lock`.
    unsafe {
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xUnlock.map(|unlock| unlock(locks, level)))
    }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, answer: *mut c_int) -> c_int {
    // SAFETY: as in `lock`.
    unsafe {
        *answer = 0;
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xCheckReservedLock.map(|check| check(locks, answer)))
    }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    answer: *mut *mut c_void,
) -> c_int {
    // SAFETY: as in `lock`.
    unsafe {
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xShmMap.map(|map| map(locks, region, bytes, extend, answer)))
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: as in `lock`.
    unsafe {
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xShmLock.map(|lock| lock(locks, offset, count, flags)))
    }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: as in `lock`.
    unsafe {
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xShmBarrier.map(|barrier| barrier(locks)).map(|()| ffi::SQLITE_OK));
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: as in `lock`.
    unsafe {
        let locks = simulated(file).locks;
        real(locks, |methods| methods.xShmUnmap.map(|unmap| unmap(locks, delete)))
    }
}
