-- The scripts as Redis runs them: `scripts/check` puts each together first (python -m shared.store.script).
std = "lua51"
read_globals = { "redis", "cjson", "KEYS", "ARGV" }
max_line_length = false -- of the generated head; tests/unit/test_script.py looks at the files
