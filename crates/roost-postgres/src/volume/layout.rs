//! Where things lie below a node's data directory. Pure path arithmetic: nothing here touches a disk.

use std::path::{Path, PathBuf};

use super::VolumeId;
use crate::template::TemplateName;

/// A node's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The data directory itself.
    pub data: PathBuf,
}

impl Layout {
    /// The layout below `data`.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    /// Where immutable clusters lie.
    pub fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    /// The immutable cluster of that name.
    pub fn template(&self, name: &TemplateName) -> PathBuf {
        self.templates().join(name.as_str())
    }

    /// Where databases lie, in folders by the first two characters of their ids.
    pub fn databases(&self) -> PathBuf {
        self.data.join("databases")
    }

    /// The folder that a database shares with those whose ids begin alike.
    pub fn shard(&self, id: &VolumeId) -> PathBuf {
        self.databases().join(id.shard())
    }

    /// Everything of one database.
    pub fn database(&self, id: &VolumeId) -> PathBuf {
        self.shard(id).join(id.as_str())
    }

    /// The volume: manifest, lock, and the files in one of two forms.
    pub fn volume(&self, id: &VolumeId) -> PathBuf {
        self.database(id).join("volume")
    }

    /// What says what the volume was made from.
    pub fn manifest(&self, id: &VolumeId) -> PathBuf {
        self.volume(id).join(super::manifest::FILE_NAME)
    }

    /// The file whose lock makes an instance the volume's only one.
    pub fn lock(&self, id: &VolumeId) -> PathBuf {
        self.volume(id).join("lock")
    }

    /// A layered volume's own files, over its template's.
    pub fn upper(&self, id: &VolumeId) -> PathBuf {
        self.volume(id).join("upper")
    }

    /// The scratch directory that overlayfs wants beside [`upper`](Self::upper).
    pub fn work(&self, id: &VolumeId) -> PathBuf {
        self.volume(id).join("work")
    }

    /// A copied volume's files: a whole data directory.
    pub fn pgdata(&self, id: &VolumeId) -> PathBuf {
        self.volume(id).join("pgdata")
    }

    /// Where a database's logs lie.
    pub fn logs(&self, id: &VolumeId) -> PathBuf {
        self.database(id).join("log")
    }

    /// The log that an instance appends to.
    pub fn log(&self, id: &VolumeId) -> PathBuf {
        self.logs(id).join("postgres.log")
    }

    /// The id of the database that a path below [`databases`](Self::databases) belongs to, if it is named like one and
    /// lies in the right folder.
    pub fn identify(&self, database: &Path) -> Option<VolumeId> {
        let id: VolumeId = database.file_name()?.to_str()?.parse().ok()?;
        (self.database(&id) == database).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_lies_in_the_folder_of_its_first_two_characters() {
        let layout = Layout::new("/data");
        let id: VolumeId = "db_abcdefghij234567klmn".parse().unwrap();
        assert_eq!(layout.database(&id), Path::new("/data/databases/ab/db_abcdefghij234567klmn"));
        assert_eq!(layout.manifest(&id), layout.volume(&id).join("manifest.json"));
        assert_eq!(layout.log(&id), layout.database(&id).join("log/postgres.log"));
    }

    #[test]
    fn a_directory_is_identified_only_in_its_own_place() {
        let layout = Layout::new("/data");
        let id: VolumeId = "db_abcdefghij234567klmn".parse().unwrap();
        assert_eq!(layout.identify(&layout.database(&id)), Some(id));
        assert_eq!(layout.identify(Path::new("/data/databases/zz/db_abcdefghij234567klmn")), None);
        assert_eq!(layout.identify(Path::new("/data/databases/ab/lost+found")), None);
    }
}
