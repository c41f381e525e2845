#!/usr/bin/env bash
# Builds Debian packages in the given folder: what make install installs, with the development
# files (-dev) and the debug symbols (-dbgsym) in packages of their own.
set -euo pipefail
out=$(readlink -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

name=spdk-lvol-detach
release=$(spdk_version "$SPDK_ROOT_DIR")
version=$(awk -F'"' '/^version = / { print $2; exit }' Cargo.toml)
# A package fits one release of SPDK.
package_version=$version+spdk$release-1
architecture=$(dpkg --print-architecture)
# The variables that Debian's own tools use.
maintainer="${DEBFULLNAME:-the spdk-lvol-detach authors} <${DEBEMAIL:-spdk-lvol-detach@invalid.invalid}>"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
all=$work/all

# take PATH... PACKAGE: moves what was installed to another package.
take() {
	local package=${*: -1} path
	for path in "${@:1:$#-1}"; do
		[ -e "$all/$path" ] || continue
		mkdir -p "$work/$package/$(dirname "$path")"
		mv "$all/$path" "$work/$package/$path"
	done
}

# strip_program FILE: keeps what is needed to run, and puts the rest where debuggers look for it.
strip_program() {
	local id debug
	id=$(readelf -n "$1" | awk '/Build ID:/ { print $3 }')
	debug=$work/$name-dbgsym/usr/lib/debug/.build-id/${id:0:2}/${id:2}.debug
	mkdir -p "$(dirname "$debug")"
	objcopy --only-keep-debug --compress-debug-sections "$1" "$debug"
	chmod 644 "$debug"
	strip --strip-unneeded --remove-section=.comment "$1"
	objcopy --add-gnu-debuglink="$debug" "$1"
}

# library_depends FILE...: the packages that have the libraries which the files are linked with.
library_depends() {
	mkdir -p "$work/source/debian"
	printf 'Source: %s\n\nPackage: %s\nArchitecture: any\n' "$name" "$name" >"$work/source/debian/control"
	(cd "$work/source" && dpkg-shlibdeps -O "${@/#/-e}") | sed 's/^shlibs:Depends=//'
}

# document PACKAGE: the documents that every package must have. The one for debuggers links to another's.
document() {
	local doc=$work/$1/usr/share/doc/$1
	if [[ $1 == *-dbgsym ]]; then
		mkdir -p "$(dirname "$doc")"
		ln -s $name "$doc"
		return
	fi
	mkdir -p "$doc"
	cp "$work/copyright" "$doc/copyright"
	gzip -9n <"$work/changelog" >"$doc/changelog.Debian.gz"
}

# build PACKAGE SECTION SYNOPSIS DESCRIPTION <<FIELDS: builds the package from its folder.
build() {
	local folder=$work/$1 fields
	fields=$(cat)
	document "$1"
	mkdir -p "$folder/DEBIAN"
	find "$folder" -type d -exec chmod 755 {} +
	(cd "$folder" && find usr -type f -exec md5sum {} +) >"$folder/DEBIAN/md5sums"
	cat >"$folder/DEBIAN/control" <<-CONTROL
		Package: $1
		Source: $name
		Version: $package_version
		Architecture: $architecture
		Maintainer: $maintainer
		Installed-Size: $(du -sk --exclude=DEBIAN "$folder" | cut -f1)
		$fields
		Section: $2
		Priority: optional
		Description: $3
		 $4
	CONTROL
	dpkg-deb --root-owner-group -Zxz --build "$folder" "$out" >/dev/null
	printf '%s\n' "$out/$1_${package_version}_$architecture.deb"
}

make --no-print-directory --silent install PREFIX=/usr DESTDIR="$all"
python3 scripts/copyright.py >"$work/copyright"
cat >"$work/changelog" <<-CHANGELOG
	$name ($package_version) unstable; urgency=medium

	  * Built for SPDK $release. What has changed is in changelog.gz.

	 -- $maintainer  $(LC_ALL=C date -u -R -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}")
CHANGELOG

doc=$all/usr/share/doc/$name
# It is in the copyright file.
rm "$doc/LICENSE"
gzip -9n <"$doc/CHANGELOG.md" >"$doc/changelog.gz"
gzip -9n "$all/usr/share/man/man8/spdk_tgt-lvol-detach.8"

take usr/lib/$name/libspdk_lvol_detach.a usr/include usr/lib/pkgconfig \
	usr/share/doc/$name/examples/{c,chain.json} $name-dev
mkdir -p "$out"
rm -f "$out"/*.deb
mv "$all" "$work/$name"
mkdir "$work/$name/DEBIAN"
strip --strip-debug "$work/$name-dev/usr/lib/$name/libspdk_lvol_detach.a"
programs=("$work/$name/usr/lib/$name/libspdk_lvol_detach.so" "$work/$name/usr/lib/$name/spdk_tgt")
for program in "${programs[@]}"; do strip_program "$program"; done

depends=$(library_depends "${programs[@]}")

build $name admin "bdev_lvol_detach_parent for SPDK $release's target" \
	"The JSON-RPC method bdev_lvol_detach_parent detaches a logical volume from its
 parent snapshot by rewriting only metadata. This package has the library
 that a stock spdk_tgt of SPDK $release preloads, an spdk_tgt that has it
 linked in, and the plugin for rpc.py." <<-FIELDS
	Depends: $depends
	Recommends: python3
	Suggests: jq
FIELDS
build $name-dev libdevel "bdev_lvol_detach_parent for SPDK $release's target - development files" \
	"The static library, for linking into your own target, and the C header,
 pkg-config file and example for applications that use SPDK as a library." <<-FIELDS
	Depends: $name (= $package_version)
FIELDS
build $name-dbgsym debug "debug symbols for $name" \
	"Debug symbols for debuggers and profilers." <<-FIELDS
	Depends: $name (= $package_version)
	Auto-Built-Package: debug-symbols
FIELDS
