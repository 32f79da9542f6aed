//! Who may connect to an instance: whoever reaches its socket, and only the gateway does.

/// `pg_hba.conf`. Authentication is the gateway's, and the socket is closed to everybody else, the instance's own user
/// included, before anything connects.
pub fn hba() -> String {
    "# Written by Roost at every start. Clients are authenticated by the gateway; nothing else reaches the socket.\n\
     local all all trust\n"
        .to_owned()
}

/// `pg_ident.conf`: no maps.
pub fn ident() -> String {
    "# Written by Roost at every start: no maps.\n".to_owned()
}
