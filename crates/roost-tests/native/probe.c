/*
 * Native code inside a tenant's server, as a superuser could run it: each function tries one way out and returns the
 * errno that stopped it, or 0 if nothing did. Built without Postgres' headers; the declarations below are the parts of
 * its ABI (version 17) that a module needs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

typedef unsigned long Datum;
struct argument { Datum value; char is_null; };
struct call {
    void *function, *context, *result_info;
    unsigned collation;
    char is_null;
    short count;
    struct argument arguments[];
};

struct magic { int length, version, max_arguments, max_keys, name_length, float8_by_value; char extra[32]; };
const struct magic *Pg_magic_func(void);
const struct magic *Pg_magic_func(void)
{
    static const struct magic magic = {sizeof(struct magic), 1700, 100, 32, 64, 1, "PostgreSQL"};
    return &magic;
}

struct information { int version; };
#define PROBE(name)                                               \
    const struct information *pg_finfo_##name(void);              \
    const struct information *pg_finfo_##name(void)               \
    {                                                             \
        static const struct information information = {1};        \
        return &information;                                      \
    }                                                             \
    Datum name(struct call *call);                                \
    Datum name(struct call *call)

#define TEXT(n) ((const char *)call->arguments[n].value)
#define NUMBER(n) ((int)call->arguments[n].value)

static Datum outcome(long result)
{
    return result < 0 ? (Datum)errno : 0;
}

PROBE(probe_read) { int file = open(TEXT(0), O_RDONLY); Datum found = outcome(file); if (file >= 0) close(file); return found; }
PROBE(probe_write) { int file = open(TEXT(0), O_WRONLY | O_CREAT, 0600); Datum found = outcome(file); if (file >= 0) close(file); return found; }

PROBE(probe_tcp)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)NUMBER(0))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int file = socket(AF_INET, SOCK_STREAM, 0);
    if (file < 0) return (Datum)errno;
    Datum found = outcome(connect(file, (struct sockaddr *)&address, sizeof address));
    close(file);
    return found;
}

PROBE(probe_unix)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, TEXT(0), sizeof address.sun_path - 1);
    int file = socket(AF_UNIX, SOCK_STREAM, 0);
    if (file < 0) return (Datum)errno;
    Datum found = outcome(connect(file, (struct sockaddr *)&address, sizeof address));
    close(file);
    return found;
}

PROBE(probe_abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(TEXT(0));
    memcpy(address.sun_path + 1, TEXT(0), length);
    int file = socket(AF_UNIX, SOCK_STREAM, 0);
    if (file < 0) return (Datum)errno;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    Datum found = outcome(connect(file, (struct sockaddr *)&address, size));
    close(file);
    return found;
}

PROBE(probe_raw_socket) { (void)call; int file = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); Datum found = outcome(file); if (file >= 0) close(file); return found; }
PROBE(probe_netlink) { (void)call; int file = socket(AF_NETLINK, SOCK_RAW, 0); Datum found = outcome(file); if (file >= 0) close(file); return found; }
PROBE(probe_signal) { return outcome(kill(NUMBER(0), 0)); }
PROBE(probe_trace) { return outcome(ptrace(PTRACE_ATTACH, NUMBER(0), 0, 0)); }
PROBE(probe_user_namespace) { (void)call; return outcome(unshare(CLONE_NEWUSER)); }
PROBE(probe_mount) { (void)call; return outcome(mount("none", "/tmp", "tmpfs", 0, "")); }
PROBE(probe_become_root) { (void)call; return outcome(setuid(0)); }
PROBE(probe_device) { (void)call; return outcome(mknod("device", S_IFBLK | 0600, 0x0100)); }
PROBE(probe_chroot) { (void)call; return outcome(chroot("/")); }
PROBE(probe_bpf) { (void)call; return outcome(syscall(SYS_bpf, 0, 0, 0)); }
PROBE(probe_keys) { (void)call; return outcome(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1)); }
PROBE(probe_io_uring) { (void)call; return outcome(syscall(SYS_io_uring_setup, 1, 0)); }
PROBE(probe_clock) { (void)call; struct { long a, b; } time = {1, 0}; return outcome(syscall(SYS_clock_settime, 0, &time)); }
PROBE(probe_reboot) { (void)call; return outcome(syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0)); }

/* Whether a file with the setuid bit, or any new program, can be made in the data folder and run. */
PROBE(probe_execute)
{
    (void)call;
    static const char script[] = "\177ELF";
    int file = open("escape", O_WRONLY | O_CREAT | O_TRUNC, 04755);
    if (file < 0) return (Datum)errno;
    if (write(file, script, sizeof script) < 0) { close(file); return (Datum)errno; }
    close(file);
    char *arguments[] = {"escape", NULL};
    /* It returns in any case: the file is no program. EACCES is the mount's noexec, ENOEXEC would be an attempt. */
    execv("./escape", arguments);
    int found = errno;
    unlink("escape");
    return found == ENOEXEC ? 0 : (Datum)found;
}
