/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Registers the extension with SPDK, in the process that loads it or has it linked in, if that is an
 * SPDK target.
 *
 * The library that is preloaded refers to no symbol of SPDK's, or no other process could be started
 * with it. In their place it has stubs, which build.rs makes: each jumps to the address that its entry
 * in the section lvol_detach_needs holds. They are filled here, before main. The static library has no
 * stubs: the linker that makes a target of it binds what is called.
 */

#include "spdk/stdinc.h"
#include "spdk/log.h"
#include "spdk/util.h"
#include "spdk/version.h"
#include "compat.h"

#include <dlfcn.h>

void lvol_detach_init(void);
void lvol_detach_fini(void);

struct need {
	const char *function;
	void *address;
};

/* Made by the linker, if there is such a section. (Were they said to be hidden, the compiler would take it
 * for granted.) */
extern struct need __start_lvol_detach_needs[] __attribute__((weak));
extern struct need __stop_lvol_detach_needs[] __attribute__((weak));

/* The functions that the process lacks, as far as there is room. */
static char g_missing[512];

/* What SPDK_LOG_REGISTER_COMPONENT and SPDK_SUBSYSTEM_REGISTER would make, if they didn't call SPDK in
 * whatever process this is. src/base/log.rs reads the flag. */
struct spdk_log_flag SPDK_LOG_lvol_detach = {
	.name = "lvol_detach",
	.enabled = false,
};

/* For the target a subsystem that can't do its work has started like any other. */
static void
start(void)
{
	if (g_missing[0] == '\0') {
		lvol_detach_init();
		return;
	}
	SPDK_ERRLOG("bdev_lvol_detach_parent is not registered, as this extension does not fit the target: "
		    "it is built for SPDK v%d.%02d, and the target has no %s. Build it again with the SPDK "
		    "tree that the target is built from\n",
		    SPDK_VERSION_MAJOR, SPDK_VERSION_MINOR, g_missing);
	spdk_subsystem_init_next(0);
}

static void
stop(void)
{
	if (g_missing[0] == '\0') {
		lvol_detach_fini();
	} else {
		spdk_subsystem_fini_next();
	}
}

static struct spdk_subsystem g_subsystem = {
	.name = "lvol_detach",
	.init = start,
	.fini = stop,
};

static struct spdk_subsystem_depend g_depends_on_bdev = {
	.name = "lvol_detach",
	.depends_on = "bdev",
};

static void
find_functions(void)
{
	struct need *need;
	size_t len = 0;

	for (need = __start_lvol_detach_needs; need < __stop_lvol_detach_needs; need++) {
		need->address = dlsym(RTLD_DEFAULT, need->function);
		if (need->address == NULL && len < sizeof(g_missing)) {
			len += snprintf(g_missing + len, sizeof(g_missing) - len, "%s%s",
					len > 0 ? ", " : "", need->function);
		}
	}
}

/* Whether there can be lvols in the process, and what it takes to say in its log that another function is
 * missing. What the library is linked into is a target. */
static bool
is_target(void)
{
	static const char *const functions[] = {
		"spdk_lvs_init", "spdk_log", "spdk_log_register_flag",
		"spdk_add_subsystem", "spdk_add_subsystem_depend",
		"spdk_subsystem_init_next", "spdk_subsystem_fini_next",
	};
	size_t i;

	if (__start_lvol_detach_needs == NULL) {
		return true;
	}
	for (i = 0; i < SPDK_COUNTOF(functions); i++) {
		if (dlsym(RTLD_DEFAULT, functions[i]) == NULL) {
			return false;
		}
	}
	return true;
}

/* Whether an entry of LD_PRELOAD is the file that this is in. */
static bool
is_own_file(const char *entry, const char *own)
{
	const char *own_name = strrchr(own, '/');
	struct stat entry_stat, own_stat;

	if (strchr(entry, '/') != NULL) {
		return stat(entry, &entry_stat) == 0 && stat(own, &own_stat) == 0 &&
		       entry_stat.st_dev == own_stat.st_dev && entry_stat.st_ino == own_stat.st_ino;
	}
	/* It was looked for in the dynamic linker's folders. */
	return strcmp(entry, own_name != NULL ? own_name + 1 : own) == 0;
}

/* What the target starts has no use for the library. Other processes keep the entry: one of them may be
 * a wrapper that is about to become the target. */
static void
leave_environment(void)
{
	static const char separators[] = " :";
	const char *preload = getenv("LD_PRELOAD");
	char *entries, *entry, *state, *others;
	Dl_info own;

	if (preload == NULL || dladdr(&g_subsystem, &own) == 0) {
		return;
	}
	entries = strdup(preload);
	others = calloc(1, strlen(preload) + 1);
	if (entries != NULL && others != NULL) {
		for (entry = strtok_r(entries, separators, &state); entry != NULL;
		     entry = strtok_r(NULL, separators, &state)) {
			if (!is_own_file(entry, own.dli_fname)) {
				strcat(others, others[0] != '\0' ? ":" : "");
				strcat(others, entry);
			}
		}
		if (others[0] == '\0') {
			unsetenv("LD_PRELOAD");
		} else {
			setenv("LD_PRELOAD", others, 1);
		}
	}
	free(entries);
	free(others);
}

__attribute__((constructor)) static void
load(void)
{
	if (!is_target()) {
		return;
	}
	find_functions();
	leave_environment();
	spdk_log_register_flag("lvol_detach", &SPDK_LOG_lvol_detach);
	spdk_add_subsystem(&g_subsystem);
	spdk_add_subsystem_depend(&g_depends_on_bdev);
}
