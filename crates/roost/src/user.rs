//! The user that the node runs as.

use anyhow::{Context, Result, bail};
use roost_warden::config::NODE_UID;

/// The user that is taken where one of this name exists and the operator chose none.
const DEFAULT_NAME: &str = "roost";

/// A user and their group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The user that `node_user` names: `auto`, a name, or a uid.
pub(crate) fn node_user(setting: &str) -> Result<User> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    choose(setting, &users)
}

fn choose(setting: &str, users: &str) -> Result<User> {
    if setting == "auto" {
        return Ok(find(users, DEFAULT_NAME).unwrap_or(User { uid: NODE_UID, gid: NODE_UID }));
    }
    let user = match setting.parse::<u32>() {
        Ok(uid) => User { uid, gid: uid },
        Err(_) => find(users, setting).with_context(|| format!("node_user: there is no user `{setting}`"))?,
    };
    if user.uid == 0 {
        bail!("node_user is root, but the point of the node is to be an ordinary user");
    }
    Ok(user)
}

/// A user in the format of passwd(5).
fn find(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let mut numbers = fields.skip(1).map(str::parse);
        Some(User { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\nmary:x:1001:1002::/home/mary:/bin/sh\nbroken:x\n";

    #[test]
    fn a_user_is_found_by_name_or_taken_by_uid() {
        assert_eq!(choose("mary", USERS).unwrap(), User { uid: 1001, gid: 1002 });
        assert_eq!(choose("77", USERS).unwrap(), User { uid: 77, gid: 77 });
        assert!(choose("nobody-here", USERS).is_err());
        assert!(choose("broken", USERS).is_err());
    }

    #[test]
    fn without_a_choice_it_is_roost_or_a_uid_of_ones_own() {
        assert_eq!(choose("auto", USERS).unwrap(), User { uid: NODE_UID, gid: NODE_UID });
        let users = format!("{USERS}roost:x:500:501::/:/bin/false\n");
        assert_eq!(choose("auto", &users).unwrap(), User { uid: 500, gid: 501 });
    }

    #[test]
    fn the_node_is_never_root() {
        assert!(choose("root", USERS).is_err());
        assert!(choose("0", USERS).is_err());
    }
}
