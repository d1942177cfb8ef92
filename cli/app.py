"""The `tokenspool` command: its table of contents. Each command declares its options here and lives in its own module.

A command imports what it needs when it runs: `tokenspool --help` and `submit` must not wait for a web framework, and
only the `worker` process ever imports an LLM SDK.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandError

app = typer.Typer(
    name="tokenspool",
    help="The durable buffer between your code and the model. Settings are TOKENSPOOL_* environment variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")]
Url = Annotated[str, typer.Option(envvar="TOKENSPOOL_URL", help="URL of the API.")]

DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def dev(
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=0, help="Number of worker processes.")] = 1,
    data_dir: Annotated[Path, typer.Option(help="Directory for the jobs and the logs.")] = Path(".tokenspool"),
    simulator: Annotated[bool, typer.Option("--simulator", help="Use the scripted simulator as the LLM.")] = False,
) -> None:
    """Run everything on this machine: Redis, an LLM, the API and workers. Ctrl-C stops it; the jobs are kept."""
    from cli.dev import run_dev

    run_dev(port=port, workers=workers, data_dir=data_dir, simulator=simulator)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow TOKENSPOOL_AUTH=off on an open network.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Number of API processes that share the port.")] = 1,
    socket_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the API."""
    from cli.serve import run_api

    run_api(host=host, port=port, insecure=insecure, processes=processes, socket_fd=socket_fd)


@app.command()
def worker(
    concurrency: Annotated[int | None, typer.Option(help="Jobs at once. Default: TOKENSPOOL_CONCURRENCY.")] = None,
    drain_s: Annotated[
        float | None, typer.Option(help="Seconds to keep running jobs after SIGTERM before they are handed back.")
    ] = None,
) -> None:
    """Run a worker. SIGTERM lets its jobs end first; a second SIGTERM hands them back at once."""
    from cli.serve import run_one_worker

    run_one_worker(concurrency=concurrency, drain_s=drain_s)


@app.command()
def simulator(
    port: Port = 9100,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grammar: Annotated[bool, typer.Option("--grammar", help="Print the words that it obeys in a prompt.")] = False,
) -> None:
    """Run the scripted simulator of the Anthropic and chat completions APIs."""
    if grammar:
        from simulator.words import grammar as grammar_of_words

        print(grammar_of_words())
        return
    from cli.serve import run_simulator

    run_simulator(host=host, port=port)


@app.command()
def submit(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print the answer while it is generated.")] = False,
    model: Annotated[str | None, typer.Option(help="Model to use. Default: the API's TOKENSPOOL_MODEL.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum length of the answer, in tokens.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a prompt and print the job's id or, with --follow, its answer."""
    from cli.submit import submit_prompt

    submit_prompt(prompt, follow=follow, model=model, max_tokens=max_tokens, url=url)


@app.command()
def follow(
    job_id: Annotated[str, typer.Argument(help="Job id, as printed by submit.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Print a job's answer while it is generated. The exit code is 0 only if the job succeeded."""
    from cli.follow import follow_job

    follow_job(job_id, url=url)


@app.command()
def batch(
    file: Annotated[Path, typer.Argument(help="File of requests, one JSON object per line: {custom_id, params}.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print its progress until it has ended.")] = False,
    results: Annotated[Path | None, typer.Option(help="File for the results, one JSON object per line.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Repeat a command with the same key and file to find its batch instead of creating another."),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a file of requests as a batch. With --follow or --results, the exit code is 0 only if all succeeded."""
    from cli.batch import run_batch

    run_batch(file, follow=follow, results=results, key=idempotency_key, url=url)


tenants = typer.Typer(
    help="Limits and retention of tenants. Changes take effect at once, in every process.", no_args_is_help=True
)
app.add_typer(tenants, name="tenants")

Tenant = Annotated[str, typer.Argument(help="Name of the tenant.")]
Count = Annotated[int | None, typer.Option(min=0, max=1_000_000_000_000)]
Dollars = Annotated[float | None, typer.Option(min=0, max=1_000_000)]
Retention = Annotated[float | None, typer.Option(min=0, max=315_360_000)]


@tenants.command("set")
def tenants_set(
    tenant: Tenant,
    requests_per_minute: Count = None,
    tokens_per_minute: Count = None,
    running_jobs: Count = None,
    queued_jobs: Count = None,
    waiting_bytes: Count = None,
    usd_per_day: Dollars = None,
    usd_per_month: Dollars = None,
    end_user_running_jobs: Count = None,
    end_user_usd_per_day: Dollars = None,
    end_user_usd_per_month: Dollars = None,
    log_retention_s: Retention = None,
    result_retention_s: Retention = None,
) -> None:
    """Set the given options and keep the others. 0 removes a limit. The limits of end users hold for each of them."""
    from cli.tenants import set_tenant

    set_tenant(
        tenant,
        {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "running_jobs": running_jobs,
            "queued_jobs": queued_jobs,
            "waiting_bytes": waiting_bytes,
            "usd_per_day": usd_per_day,
            "usd_per_month": usd_per_month,
            "end_user_running_jobs": end_user_running_jobs,
            "end_user_usd_per_day": end_user_usd_per_day,
            "end_user_usd_per_month": end_user_usd_per_month,
            "log_retention_s": log_retention_s,
            "result_retention_s": result_retention_s,
        },
    )


@tenants.command("show")
def tenants_show(tenant: Tenant) -> None:
    """Print a tenant's settings."""
    from cli.tenants import show_tenant

    show_tenant(tenant)


@tenants.command("list")
def tenants_list() -> None:
    """Print all tenants that have settings."""
    from cli.tenants import list_tenants

    list_tenants()


@tenants.command("clear")
def tenants_clear(tenant: Tenant) -> None:
    """Remove all settings of a tenant."""
    from cli.tenants import clear_tenant

    clear_tenant(tenant)


@tenants.command("erase")
def tenants_erase(
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Revoke a tenant's keys and erase its jobs, batches, logs and webhook deliveries. Safe to run again."""
    from cli.erase_tenant import erase_tenant
    from cli.tenants import check_tenant

    check_tenant(tenant)
    if not yes:
        typer.confirm(f"Erase all jobs and batches of {tenant}, running ones too, and revoke its keys?", abort=True)
    erase_tenant(tenant)


keys = typer.Typer(help="API keys. Connects to Redis, not to the API.", no_args_is_help=True)
app.add_typer(keys, name="keys")

KeyId = Annotated[str, typer.Argument(help="Key id, as shown by `keys list`: key_ and 16 characters.")]
KeyCount = Annotated[int | None, typer.Option(min=1, max=1_000_000_000_000)]
KeyDollars = Annotated[float | None, typer.Option(min=0.000000001, max=1_000_000)]


@keys.command("create")
def keys_create(
    tenant: Annotated[str, typer.Option(help="Tenant that the key belongs to.")],
    name: Annotated[str, typer.Option(help="What the key is for; shown in lists.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="submit, read, cancel or admin; repeat for several. Default: all but admin."),
    ] = None,
    env: Annotated[str, typer.Option(help="Second part of the key's text: live, test, …")] = "live",
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.00001, max=3650, help="Default: it does not expire.")
    ] = None,
    requests_per_minute: KeyCount = None,
    tokens_per_minute: KeyCount = None,
    running_jobs: KeyCount = None,
    queued_jobs: KeyCount = None,
    usd_per_day: KeyDollars = None,
    usd_per_month: KeyDollars = None,
) -> None:
    """Create a key and print it. It is not shown again."""
    from cli.api_keys import create_key

    create_key(
        tenant,
        name=name,
        scopes=scope or [],
        env=env,
        expires_in_days=expires_in_days,
        limits={
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "running_jobs": running_jobs,
            "queued_jobs": queued_jobs,
            "usd_per_day": usd_per_day,
            "usd_per_month": usd_per_month,
        },
    )


@keys.command("list")
def keys_list(tenant: Annotated[str | None, typer.Option(help="Default: all tenants.")] = None) -> None:
    """Print the keys without their secrets; expired and revoked keys are listed for 90 more days."""
    from cli.api_keys import list_keys

    list_keys(tenant)


@keys.command("rotate")
def keys_rotate(
    key_id: KeyId,
    grace_s: Annotated[
        int, typer.Option(min=0, max=2_592_000, help="Seconds that the old secret stays valid; 0 revokes it.")
    ] = 86_400,
) -> None:
    """Give a key a new secret and print it."""
    from cli.api_keys import rotate_key

    rotate_key(key_id, grace_s=grace_s)


@keys.command("revoke")
def keys_revoke(key_id: KeyId) -> None:
    """Revoke a key. Every process refuses it within 5 s."""
    from cli.api_keys import revoke_key

    revoke_key(key_id)


@app.command(hidden=True)
def probe(
    what: Annotated[str, typer.Argument(help="What to check: api or worker.")],
    port: Port = 8000,
) -> None:
    """Exit with 0 if the process in this container is up: for health checks."""
    from cli.probe import probe_api, probe_worker
    from cli.serve import read_settings

    match what:
        case "api":
            probe_api(port)
        case "worker":
            probe_worker(read_settings())
        case _:
            raise CommandError(f"Cannot probe {what!r}: name api or worker.", 2)


def main() -> None:
    """The entry point of the console script."""
    try:
        app()
    except CommandError as error:
        if str(error):
            print(f"tokenspool: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
