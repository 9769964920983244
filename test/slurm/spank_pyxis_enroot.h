/* How the test plugin calls `enroot`. */
#ifndef SPANK_PYXIS_ENROOT_H
#define SPANK_PYXIS_ENROOT_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

/* As whom `enroot` runs. */
struct enroot_user {
	uid_t uid;
	gid_t gid;
	const gid_t *groups;
	int group_count;
	char **environment; /* all of it; NULL: this process's own */
};

/* The arguments of a call: ENROOT("list", "-f"). */
#define ENROOT(...) ((char *const[]){ "enroot", __VA_ARGS__, NULL })

/*
 * Starts the `enroot` of this process's PATH: no input, its output into a log. Returns its process ID, or -1.
 */
pid_t start_enroot(const struct enroot_user *user, char *const arguments[]);

/*
 * Runs an importer's `get URI`: the first line that it prints, to be freed; NULL if it fails or prints none.
 */
char *get_from_importer(const struct enroot_user *user, char *importer, char *uri);

/* Runs an importer's `release`. */
int release_importer(const struct enroot_user *user, char *importer);

/* Runs it to its end; a SIGTERM that comes meanwhile is passed on to it. Returns 0 if it exits with 0. */
int run_enroot(const struct enroot_user *user, char *const arguments[]);

/* Runs it and returns what it printed, for getline; NULL if it failed. */
FILE *read_enroot(const struct enroot_user *user, char *const arguments[]);

/* Shows what the last one printed: as errors, or to the user alone. */
void show_enroot_log(bool as_error);

/*
 * Writes the file for `start --conf` from what the user asked for. PATH is a template for mkstemp. IS_JOINED:
 * the container runs already, and has the mounts that it has. BATCH_SCRIPT is to be mounted; NULL: there is
 * none.
 */
int write_start_configuration(char *path, bool is_joined, bool runs_entrypoint, const char *batch_script);

#endif
