//! Which library files a program links, found where the loader would find them.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::elf;

/// Where loaders look without being told, most specific first. Directories that a machine does not have are passed over.
const USUAL_DIRECTORIES: [&str; 10] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
];

/// How many libraries one program may link, directly and through others.
const MAX_LIBRARIES: usize = 512;

/// What a program links.
#[derive(Debug, Default)]
pub(super) struct Linked {
    /// The libraries, by the path that they are found at.
    pub(super) libraries: BTreeSet<PathBuf>,
    /// The directories of the libraries and of the loader.
    pub(super) directories: BTreeSet<PathBuf>,
}

/// Finds everything that the program at `program` links, directly and through other libraries. A library that is found
/// nowhere is passed over: it may be one that the machine's own configuration of the loader leads to.
pub(super) fn resolve(program: &Path) -> io::Result<Linked> {
    let mut linked = Linked::default();
    let mut queue = VecDeque::from([(program.to_owned(), Vec::new())]);
    while let Some((path, inherited)) = queue.pop_front() {
        let links = elf::links(&File::open(&path)?)?;
        let origin = fs::canonicalize(&path)?.parent().map(Path::to_owned).unwrap_or_default();
        if let Some(interpreter) = &links.interpreter {
            linked.directories.extend(Path::new(interpreter).parent().map(Path::to_owned));
        }
        let mut search: Vec<PathBuf> =
            links.search.iter().map(|entry| replace_origin(entry, &origin)).collect();
        search.extend(inherited);
        for name in &links.needed {
            let Some(found) = find(name, &search) else { continue };
            linked.directories.extend(found.parent().map(Path::to_owned));
            if linked.libraries.len() < MAX_LIBRARIES && linked.libraries.insert(found.clone()) {
                queue.push_back((found, search.clone()));
            }
        }
    }
    // Extensions link libraries that the server itself does not.
    linked
        .directories
        .extend(USUAL_DIRECTORIES.iter().take(4).map(PathBuf::from).filter(|directory| directory.is_dir()));
    Ok(linked)
}

fn replace_origin(entry: &str, origin: &Path) -> PathBuf {
    let replaced = entry.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", &origin.to_string_lossy());
    let path = PathBuf::from(replaced);
    // `bin/../lib` is shown as `lib`, so that what must be visible has one name.
    fs::canonicalize(&path).unwrap_or(path)
}

fn find(name: &str, search: &[PathBuf]) -> Option<PathBuf> {
    let usual = USUAL_DIRECTORIES.iter().map(PathBuf::from);
    search.iter().cloned().chain(usual).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_of_a_program_is_found_with_its_directory() {
        let linked = resolve(&std::env::current_exe().unwrap()).unwrap();
        let libc = linked.libraries.iter().find(|path| path.ends_with("libc.so.6")).unwrap();
        assert!(linked.directories.contains(libc.parent().unwrap()));
    }

    #[test]
    fn a_library_is_searched_where_the_program_says_first() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("libc.so.6");
        fs::write(&own, "").unwrap();
        assert_eq!(find("libc.so.6", &[directory.path().to_owned()]), Some(own));
        assert_eq!(find("no such library", &[directory.path().to_owned()]), None);
        assert_eq!(
            replace_origin("$ORIGIN/../lib", Path::new("/nowhere/bin")),
            Path::new("/nowhere/bin/../lib")
        );
    }
}
