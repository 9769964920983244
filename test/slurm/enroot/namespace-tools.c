/*
 * What a shell cannot do for the stand-in enroot: namespaces and mounts as an ordinary user. Three programs
 * in one file, told apart by the name they are called by. Names, options and effects are those of enroot
 * 4.1's own, so that a hook written for the real one meets the same:
 *
 *   enroot-nsenter [--user] [--mount] [--remap-root] COMMAND...
 *       becomes COMMAND in new namespaces, under the caller's uid (or 0), with every capability inside;
 *       changes of owner then seem to succeed and do nothing. Descriptors from 3 up are closed.
 *   enroot-mount [--root DIRECTORY] [--pass NUMBER] FSTAB|-
 *       mounts lines of a file like fstab(5) below DIRECTORY: those whose sixth field is NUMBER (default 0).
 *   enroot-switchroot [--login] [--rcfile FILE] --envfile FILE ROOTFS [ARGUMENT...]
 *       makes ROOTFS the root, gives up every privilege and becomes the shell, with /etc/rc or FILE as its
 *       script.
 *
 * Left out: joining namespaces; of a login: MAIL, TZ, locale, umask and limits by login.defs(5), lastlog and
 * utmp.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pwd.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * The longest line of an fstab, its newline included: at a longer one the real program stops reading,
 * silently.
 */
#define LINE_LIMIT 4095
#define LINK_LIMIT 20

/* As musl has them, with which the real programs are built. */
#define USER_PATH "/usr/local/bin:/bin:/usr/bin"
#define ROOT_PATH "/bin:/usr/bin:/sbin:/usr/sbin"

#if defined(__x86_64__)
#define NATIVE_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "only for x86_64 and aarch64"
#endif

/* ---- enroot-nsenter ---- */

static void write_text(const char *path, const char *text) {
  int fd = open(path, O_WRONLY);
  if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) err(1, "failed to create user namespace");
  close(fd);
}

static void enter_user_namespace(bool as_root) {
  char uids[64], gids[64];
  snprintf(uids, sizeof uids, "%u %u 1", as_root ? 0 : geteuid(), geteuid());
  snprintf(gids, sizeof gids, "%u %u 1", as_root ? 0 : getegid(), getegid());
  if (unshare(CLONE_NEWUSER) != 0) err(1, "failed to create user namespace");
  write_text("/proc/self/setgroups", "deny");
  write_text("/proc/self/gid_map", gids);
  write_text("/proc/self/uid_map", uids);
}

/* A uid other than 0 would lose its capabilities at the next exec; the ambient set keeps them. */
static void keep_capabilities(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
  if (syscall(SYS_capget, &header, data) != 0) err(1, "failed to get capabilities");
  for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) data[i].inheritable = data[i].effective;
  if (syscall(SYS_capset, &header, data) != 0) err(1, "failed to set capabilities");
  for (int capability = 0; capability < 32 * _LINUX_CAPABILITY_U32S_3; capability++) {
    if ((data[capability / 32].inheritable & (1u << (capability % 32))) == 0) continue;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0) err(1, "failed to set capabilities");
  }
}

static void feign_changes_of_owner(void) {
  static const unsigned int calls[] = {
#ifdef SYS_chown
    SYS_chown, SYS_lchown,
#endif
    SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setgroups, SYS_fchownat,
    SYS_fchown,
  };
  enum { COUNT = sizeof calls / sizeof *calls };
  struct sock_filter program[COUNT + 5];
  unsigned int end = 0;
  program[end++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
  program[end++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCHITECTURE, 0, COUNT + 1);
  program[end++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (unsigned int i = 0; i < COUNT; i++)
    program[end++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], COUNT - i, 0);
  program[end++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  program[end++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO);
  struct sock_fprog filter = {(unsigned short)end, program};
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) err(1, "failed to register seccomp filter");
}

static int enter(char **arguments) {
  bool user = false, mounts = false, as_root = false;
  for (; *arguments != NULL && strncmp(*arguments, "--", 2) == 0; arguments++) {
    if (strcmp(*arguments, "--user") == 0) user = true;
    else if (strcmp(*arguments, "--mount") == 0) mounts = true;
    else if (strcmp(*arguments, "--remap-root") == 0) as_root = true;
    else errx(1, "unknown option: %s", *arguments);
  }
  if (*arguments == NULL) errx(1, "no command");
  if (user) {
    enter_user_namespace(as_root);
    if (!as_root) keep_capabilities();
  }
  if (mounts && unshare(CLONE_NEWNS) != 0) err(1, "failed to create mount namespace");
  if (user) feign_changes_of_owner();
  closefrom(3);
  execvp(*arguments, arguments);
  err(1, "failed to execute: %s", *arguments);
}

/* ---- enroot-mount ---- */

struct entry {
  const char *source, *target, *type, *options;
  int pass;
};

struct flag {
  const char *name;
  unsigned long set, clear;
};

static const struct flag flags_by_name[] = {
  {"async", 0, MS_SYNCHRONOUS},       {"atime", 0, MS_NOATIME},
  {"bind", MS_BIND, 0},               {"dev", 0, MS_NODEV},
  {"diratime", 0, MS_NODIRATIME},     {"dirsync", MS_DIRSYNC, 0},
  {"exec", 0, MS_NOEXEC},             {"iversion", MS_I_VERSION, 0},
  {"lazytime", MS_LAZYTIME, 0},       {"loud", 0, MS_SILENT},
  {"mand", MS_MANDLOCK, 0},           {"noatime", MS_NOATIME, 0},
  {"nodev", MS_NODEV, 0},             {"nodiratime", MS_NODIRATIME, 0},
  {"noexec", MS_NOEXEC, 0},           {"noiversion", 0, MS_I_VERSION},
  {"nolazytime", 0, MS_LAZYTIME},     {"nomand", 0, MS_MANDLOCK},
  {"norelatime", 0, MS_RELATIME},     {"nostrictatime", 0, MS_STRICTATIME},
  {"nosuid", MS_NOSUID, 0},           {"private", MS_PRIVATE, 0},
  {"rbind", MS_BIND | MS_REC, 0},     {"relatime", MS_RELATIME, 0},
  {"remount", MS_REMOUNT, 0},         {"ro", MS_RDONLY, 0},
  {"rprivate", MS_PRIVATE | MS_REC, 0}, {"rshared", MS_SHARED | MS_REC, 0},
  {"rslave", MS_SLAVE | MS_REC, 0},   {"runbindable", MS_UNBINDABLE | MS_REC, 0},
  {"rw", 0, MS_RDONLY},               {"shared", MS_SHARED, 0},
  {"silent", MS_SILENT, 0},           {"slave", MS_SLAVE, 0},
  {"strictatime", MS_STRICTATIME, 0}, {"suid", 0, MS_NOSUID},
  {"sync", MS_SYNCHRONOUS, 0},        {"unbindable", MS_UNBINDABLE, 0},
  {"x-move", MS_MOVE, 0},             {"x-detach", 0, 0},
  {"x-create=dir", 0, 0},             {"x-create=file", 0, 0},
  {"x-create=auto", 0, 0},            {"auto", 0, 0},
  {"defaults", 0, 0},                 {"group", 0, 0},
  {"noauto", 0, 0},                   {"nofail", 0, 0},
  {"nogroup", 0, 0},                  {"noowner", 0, 0},
  {"nouser", 0, 0},                   {"nousers", 0, 0},
  {"owner", 0, 0},                    {"user", 0, 0},
  {"users", 0, 0},
};

static const struct flag *find_flag(const char *name) {
  for (size_t i = 0; i < sizeof flags_by_name / sizeof *flags_by_name; i++)
    if (strcmp(name, flags_by_name[i].name) == 0) return &flags_by_name[i];
  return NULL;
}

static bool has_option(const struct entry *entry, const char *name) {
  size_t length = strlen(name);
  for (const char *option = entry->options; *option != '\0'; option += strcspn(option, ","), option += *option == ',')
    if (strncmp(option, name, length) == 0 && (option[length] == '\0' || option[length] == ',')) return true;
  return false;
}

static bool looks_like_options(const char *word) { return strchr(word, ',') != NULL || find_flag(word) != NULL; }

/*
 * Follows symbolic links as they are seen with `root` as the root directory; what is not there stays as
 * written.
 */
static int resolve_below(const char *root, const char *path, char result[PATH_MAX]) {
  char top[PATH_MAX], pending[PATH_MAX], inside[PATH_MAX] = "";
  if (realpath(root, top) == NULL) return -1;
  if (strcmp(top, "/") == 0) *top = '\0';
  if (snprintf(pending, sizeof pending, "%s", path) >= (int)sizeof pending) return errno = ENAMETOOLONG, -1;
  for (int links = 0; *pending != '\0';) {
    char component[PATH_MAX], rest[PATH_MAX], candidate[2 * PATH_MAX + 1], link[PATH_MAX];
    size_t length = strcspn(pending, "/");
    memcpy(component, pending, length);
    component[length] = '\0';
    strcpy(rest, pending + length + (pending[length] == '/'));
    strcpy(pending, rest);
    if (length == 0 || strcmp(component, ".") == 0) continue;
    if (strcmp(component, "..") == 0) {
      char *last = strrchr(inside, '/');
      if (last == NULL) return errno = EXDEV, -1;
      *last = '\0';
      continue;
    }
    if (snprintf(candidate, sizeof candidate, "%s%s/%s", top, inside, component) >= PATH_MAX)
      return errno = ENAMETOOLONG, -1;
    ssize_t link_length = readlink(candidate, link, sizeof link);
    if (link_length < 0) {
      if (errno != EINVAL && errno != ENOENT) return -1;
      strcpy(inside, candidate + strlen(top));
      continue;
    }
    if (++links > LINK_LIMIT) return errno = ELOOP, -1;
    if (snprintf(pending, sizeof pending, "%.*s/%s", (int)link_length, link, rest) >= (int)sizeof pending)
      return errno = ENAMETOOLONG, -1;
    if (*link == '/') *inside = '\0';
  }
  if (snprintf(result, PATH_MAX, "%s%s", top, inside) >= PATH_MAX) return errno = ENAMETOOLONG, -1;
  if (*result == '\0') strcpy(result, "/");
  return 0;
}

/* The real program gives what it creates no permissions at all, and the directories on the way 0755. */
static int create_target(const char *path, mode_t type) {
  char parents[PATH_MAX];
  strcpy(parents, path);
  for (char *slash = strchr(parents + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    if (mkdir(parents, 0755) != 0 && errno != EEXIST) return -1;
    *slash = '/';
  }
  int status = type == S_IFDIR ? mkdir(path, 0) : mknod(path, type, 0);
  return status != 0 && errno != EEXIST ? -1 : 0;
}

static mode_t wanted_type(const struct entry *entry, unsigned long flags) {
  struct stat source;
  if (has_option(entry, "x-create=file")) return S_IFREG;
  if (has_option(entry, "x-create=dir")) return S_IFDIR;
  if (!has_option(entry, "x-create=auto")) return 0;
  if ((flags & MS_BIND) == 0) return S_IFDIR;
  if (stat(entry->source, &source) != 0) return 0;
  return S_ISDIR(source.st_mode) ? S_IFDIR : S_IFREG;
}

/* In a user namespace a bind mount may not drop the flags of the mount it comes from. */
static unsigned long inherited_flags(const char *path) {
  static const struct {
    unsigned long shown, flag;
  } pairs[] = {
    {ST_NOSUID, MS_NOSUID},   {ST_NODEV, MS_NODEV},           {ST_NOEXEC, MS_NOEXEC},     {ST_RDONLY, MS_RDONLY},
    {ST_NOATIME, MS_NOATIME}, {ST_NODIRATIME, MS_NODIRATIME}, {ST_RELATIME, MS_RELATIME},
  };
  struct statvfs filesystem;
  unsigned long flags = 0;
  if (statvfs(path, &filesystem) != 0) return 0;
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    if ((filesystem.f_flag & pairs[i].shown) != 0) flags |= pairs[i].flag;
  return flags;
}

static bool in_user_namespace(void) {
  unsigned int inside = 0, outside = 0, count = 0;
  FILE *map = fopen("/proc/self/uid_map", "r");
  if (map == NULL) return false;
  int fields = fscanf(map, "%u %u %u", &inside, &outside, &count);
  fclose(map);
  return fields != 3 || inside != 0 || outside != 0 || count != UINT_MAX;
}

static int mount_filesystem(const struct entry *entry, const char *path, unsigned long flags, const char *data) {
  if (has_option(entry, "x-detach")) return umount2(path, MNT_DETACH);
  if (!has_option(entry, "rbind")) flags &= ~(unsigned long)MS_REC;
  if ((flags & (MS_REMOUNT | MS_BIND)) != 0 && in_user_namespace())
    flags |= inherited_flags((flags & MS_REMOUNT) != 0 ? path : entry->source);
  if (mount(entry->source, path, entry->type, flags, data) != 0) return -1;
  if ((flags & MS_BIND) == 0 || (flags & MS_REMOUNT) != 0) return 0;
  if ((flags & ~(unsigned long)(MS_BIND | MS_REC)) == 0 && *data == '\0') return 0;
  return mount(NULL, path, NULL, flags | MS_REMOUNT, data);
}

static int set_propagation(const struct entry *entry, const char *path, unsigned long flags) {
  static const struct flag kinds[] = {
    {"rshared", MS_SHARED, 0}, {"rslave", MS_SLAVE, 0}, {"rprivate", MS_PRIVATE, 0}, {"runbindable", MS_UNBINDABLE, 0}};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    if ((flags & kinds[i].set) == 0) continue;
    unsigned long recursive = has_option(entry, kinds[i].name) ? MS_REC : 0;
    if (mount(NULL, path, NULL, kinds[i].set | recursive | (flags & MS_SILENT), NULL) != 0) return -1;
  }
  return 0;
}

/* Returns what could not be done, with errno; NULL: all is done. */
static const char *try_entry(const char *root, const struct entry *entry, char path[PATH_MAX]) {
  const unsigned long propagation = MS_SHARED | MS_SLAVE | MS_PRIVATE | MS_UNBINDABLE;
  char data[LINE_LIMIT + 2] = "", options[LINE_LIMIT + 2];
  unsigned long flags = 0;
  strcpy(path, entry->target);
  if (resolve_below(root, entry->target, path) != 0) return "failed to resolve path";
  strcpy(options, entry->options);
  for (char *rest = options, *option = strsep(&rest, ","); option != NULL; option = strsep(&rest, ",")) {
    const struct flag *flag = find_flag(option);
    if (flag != NULL) flags = (flags & ~flag->clear) | flag->set;
    else if (*option != '\0') strcat(strcat(data, *data == '\0' ? "" : ","), option);
  }
  mode_t type = wanted_type(entry, flags);
  if (type != 0 && create_target(path, type) != 0)
    return type == S_IFDIR ? "failed to create directory" : "failed to create file";
  if (strcmp(entry->type, "none") != 0 || (flags & ~(propagation | MS_REC | MS_SILENT)) != 0)
    if (mount_filesystem(entry, path, flags & ~propagation, data) != 0)
      return has_option(entry, "x-detach") ? "failed to unmount" : "failed to mount";
  if (set_propagation(entry, path, flags) != 0) return "failed to set mount propagation";
  return NULL;
}

static void mount_entry(const char *root, const struct entry *entry) {
  char path[PATH_MAX];
  const char *failed = try_entry(root, entry, path);
  if (failed == NULL) return;
  const char *about = strstr(failed, "mount") != NULL && strstr(failed, "propagation") == NULL ? entry->source : "";
  const char *at = *about != '\0' ? " at " : "";
  if (!has_option(entry, "nofail")) err(1, "%s: %s%s%s", failed, about, at, path);
  if (!has_option(entry, "silent")) warn("%s: %s%s%s", failed, about, at, path);
}

/* Of a line that leaves fields out, those that it means; false: it names no mount. */
static bool complete(struct entry *entry) {
  bool nothing_after_target = *entry->type == '\0' && *entry->options == '\0';
  if (*entry->target != '\0' && nothing_after_target && looks_like_options(entry->target)) {
    entry->options = entry->target;
    entry->type = "none";
    entry->target = "";
  }
  if (*entry->type != '\0' && *entry->options == '\0' && looks_like_options(entry->type)) {
    entry->options = entry->type;
    entry->type = "none";
    if (strcmp(entry->target, "none") == 0) entry->target = "";
  }
  bool untyped = *entry->type == '\0' || strcmp(entry->type, "none") == 0;
  if (strcmp(entry->source, "tmpfs") == 0) {
    if (untyped) entry->type = "tmpfs";
  } else {
    if (*entry->target == '\0') entry->target = entry->source;
    if (untyped) {
      entry->type = "none";
      if (*entry->options == '\0') entry->options = "rbind,x-create=auto";
    }
  }
  return *entry->target != '\0';
}

static void mount_table(const char *root, FILE *table, const char *name, int pass) {
  char *line = NULL;
  size_t size = 0;
  ssize_t length;
  while ((length = getline(&line, &size, table)) > 0) {
    if (length > LINE_LIMIT || line[length - 1] != '\n') break;
    const char *fields[6] = {"", "", "", "", "0", "0"};
    char *rest = line;
    for (int i = 0; i < 6;) {
      char *field = strsep(&rest, " \t\r\n\v\f");
      if (field == NULL) break;
      if (*field != '\0') fields[i++] = field;
    }
    if (*fields[0] == '\0' || *fields[0] == '#') continue;
    struct entry entry = {fields[0], fields[1], fields[2], fields[3], atoi(fields[5])};
    /* A line of five fields: its last is the pass. */
    if (entry.pass == 0) entry.pass = atoi(fields[4]);
    if (entry.pass != pass) continue;
    if (!complete(&entry)) errx(1, "invalid fstab entry: \"%s\" at %s", fields[0], name);
    mount_entry(root, &entry);
  }
  free(line);
}

static int mount_tables(char **arguments) {
  const char *root = "/";
  int pass = 0;
  for (; arguments[0] != NULL && arguments[1] != NULL; arguments += 2) {
    if (strcmp(arguments[0], "--root") == 0) root = arguments[1];
    else if (strcmp(arguments[0], "--pass") == 0) pass = atoi(arguments[1]);
    else break;
  }
  for (; *arguments != NULL; arguments++) {
    FILE *table = strcmp(*arguments, "-") == 0 ? stdin : fopen(*arguments, "r");
    if (table == NULL) err(1, "failed to open: %s", *arguments);
    mount_table(root, table, *arguments, pass);
  }
  return 0;
}

/* ---- enroot-switchroot ---- */

/* Nothing but what the file says is left in the environment. */
static void load_environment(const char *path) {
  char *line = NULL;
  size_t size = 0;
  FILE *file = fopen(path, "r");
  if (file == NULL) err(1, "failed to load environment: %s", path);
  clearenv();
  while (getline(&line, &size, file) >= 0) {
    line[strcspn(line, "\n")] = '\0';
    char *value = strchr(line, '=');
    if (value == NULL || value == line || isdigit((unsigned char)*line)) continue;
    const char *end = line;
    while (isalnum((unsigned char)*end) || *end == '_') end++;
    if (end != value) continue;
    *value++ = '\0';
    setenv(line, value, 1);
  }
  free(line);
  fclose(file);
}

/* A descriptor of a nameless copy: the file itself is out of reach once the root has changed. */
static int copy_to_memory(const char *path) {
  char buffer[4096];
  ssize_t length;
  int from = open(path, O_RDONLY), to = memfd_create("rc", 0);
  if (from < 0 || to < 0) err(1, "failed to read file: %s", path);
  while ((length = read(from, buffer, sizeof buffer)) > 0)
    if (write(to, buffer, (size_t)length) != length) err(1, "failed to copy file: %s", path);
  if (length < 0) err(1, "failed to read file: %s", path);
  close(from);
  return to;
}

static void switch_root(const char *rootfs) {
  int old_root = open("/", O_PATH | O_DIRECTORY), new_root = open(rootfs, O_PATH | O_DIRECTORY);
  bool done = old_root >= 0 && new_root >= 0 && fchdir(new_root) == 0 && syscall(SYS_pivot_root, ".", ".") == 0 &&
              fchdir(old_root) == 0 && mount(NULL, ".", NULL, MS_REC | MS_SLAVE, NULL) == 0 &&
              umount2(".", MNT_DETACH) == 0 && fchdir(new_root) == 0 && chroot(".") == 0;
  if (!done || (unshare(CLONE_NEWCGROUP) != 0 && errno != EINVAL)) err(1, "failed to switch root: %s", rootfs);
}

static void drop_privileges(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) err(1, "failed to drop privileges");
  if (geteuid() == 0) return;
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EPERM) err(1, "failed to drop privileges");
  if (syscall(SYS_capset, &header, none) != 0) err(1, "failed to drop privileges");
}

/* Without the C library's name services: those of the machine have no business in the container. */
static struct passwd *find_account(uid_t uid) {
  FILE *accounts = fopen("/etc/passwd", "r");
  struct passwd *account = NULL;
  if (accounts == NULL) return NULL;
  while ((account = fgetpwent(accounts)) != NULL && account->pw_uid != uid) continue;
  fclose(accounts);
  return account;
}

static void set_default(const char *name, const char *value) {
  if (*value != '\0') setenv(name, value, 0);
}

/* Of login.defs(5); empty: it says nothing. */
static void read_login_setting(const char *name, char *value, size_t size) {
  char *line = NULL;
  size_t line_size = 0;
  FILE *file = fopen("/etc/login.defs", "r");
  *value = '\0';
  if (file == NULL) return;
  while (getline(&line, &line_size, file) >= 0) {
    char *rest = line + strspn(line, " \t");
    size_t length = strcspn(rest, " \t=\n");
    if (length != strlen(name) || strncmp(rest, name, length) != 0) continue;
    rest += length + strspn(rest + length, " \t\"=");
    rest[strcspn(rest, " \t\"\n")] = '\0';
    snprintf(value, size, "%s", rest);
  }
  free(line);
  fclose(file);
}

static void log_in(void) {
  uid_t inside = geteuid(), outside = inside;
  FILE *map = fopen("/proc/self/uid_map", "r");
  if (map != NULL) {
    if (fscanf(map, "%u %u", &inside, &outside) != 2) inside = outside = geteuid();
    fclose(map);
  }
  if (inside != 0 && access("/etc/nologin", F_OK) == 0) exit(0);
  set_default("TERM", "dumb");
  struct passwd *account = find_account(inside);
  if (account != NULL) {
    set_default("HOME", account->pw_dir);
    set_default("SHELL", account->pw_shell);
    set_default("USER", account->pw_name);
  }
  account = find_account(outside);
  if (account != NULL) set_default("LOGNAME", account->pw_name);
  char setting[LINE_LIMIT];
  read_login_setting(inside == 0 ? "ENV_SUPATH" : "ENV_PATH", setting, sizeof setting);
  const char *path = strncmp(setting, "PATH=", 5) == 0 ? setting + 5 : setting;
  set_default("PATH", *path != '\0' ? path : inside == 0 ? ROOT_PATH : USER_PATH);
  const char *home = getenv("HOME");
  if (home == NULL || *home == '\0' || chdir(home) == 0) return;
  read_login_setting("DEFAULT_HOME", setting, sizeof setting);
  if (strcasecmp(setting, "yes") == 0 || strcasecmp(setting, "true") == 0)
    warn("failed to change directory: %s", home);
  else err(1, "failed to change directory: %s", home);
}

static int switch_to(char **arguments) {
  bool login = false;
  const char *rc = "/etc/rc", *environment = NULL;
  int rc_fd = -1;
  for (; *arguments != NULL && strncmp(*arguments, "--", 2) == 0; arguments++) {
    if (strcmp(*arguments, "--login") == 0) login = true;
    else if (strcmp(*arguments, "--rcfile") == 0 && arguments[1] != NULL) rc_fd = copy_to_memory(*++arguments);
    else if (strcmp(*arguments, "--envfile") == 0 && arguments[1] != NULL) environment = *++arguments;
    else errx(1, "unknown option: %s", *arguments);
  }
  if (*arguments == NULL) errx(1, "no root filesystem");
  if (environment != NULL) load_environment(environment);
  switch_root(*arguments++);
  drop_privileges();
  char rc_path[64];
  if (rc_fd >= 0) {
    if (rc_fd > 3 && dup2(rc_fd, 3) < 0) err(1, "failed to keep file");
    closefrom(4);
    snprintf(rc_path, sizeof rc_path, "/proc/self/fd/%d", 3);
    rc = rc_path;
  } else {
    closefrom(3);
  }
  if (login) log_in();

  const char *shell = getenv("SHELL");
  if (shell == NULL || *shell == '\0' || access(shell, R_OK | X_OK) != 0) shell = "/bin/sh";
  const char *name = strrchr(shell, '/') != NULL ? strrchr(shell, '/') + 1 : shell;
  char shell_name[PATH_MAX];
  snprintf(shell_name, sizeof shell_name, "%s%s", login ? "-" : "", name);

  size_t count = 0;
  while (arguments[count] != NULL) count++;
  const char **command = calloc(count + 5, sizeof *command);
  if (command == NULL) err(1, "failed to allocate memory");
  size_t end = 0;
  command[end++] = shell_name;
  if (access(rc, F_OK) == 0) {
    command[end++] = rc;
  } else if (count > 0 && strchr(arguments[0], ' ') != NULL) {
    command[end++] = "-c";
    command[end++] = *arguments++;
    command[end++] = name;
  } else if (count > 0 && (access(arguments[0], F_OK) != 0 || access(arguments[0], R_OK | X_OK) == 0)) {
    command[end++] = "-c";
    command[end++] = "exec \"$@\"";
    command[end++] = name;
  }
  while (*arguments != NULL) command[end++] = *arguments++;
  execv(shell, (char *const *)command);
  err(1, "failed to execute: %s", shell);
}

int main(int count, char **arguments) {
  if (count == 0) return 1;
  if (strcmp(program_invocation_short_name, "enroot-nsenter") == 0) return enter(arguments + 1);
  if (strcmp(program_invocation_short_name, "enroot-mount") == 0) return mount_tables(arguments + 1);
  if (strcmp(program_invocation_short_name, "enroot-switchroot") == 0) return switch_to(arguments + 1);
  errx(1, "called by no name it knows");
}
