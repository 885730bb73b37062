# Sourced by env.sh and lowest.sh: make_venv FOLDER PYTHON..., a virtual environment with the first that is new enough

make_venv() {
    local folder=$1 candidate
    shift
    [ ! -x "$folder/bin/python" ] || return 0
    for candidate in "$@"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "making $folder with $("$candidate" --version)"
            "$candidate" -m venv "$folder"
            return
        fi
    done
    echo "vitwarm needs Python 3.10 or newer; install it and run this again" >&2
    return 1
}
