"""The `tokenspool` command: its table of contents. Each command declares its options here and lives in its own module.

A command imports what it needs when it runs: `tokenspool --help` and `submit` must not wait for a web framework, and
only the `worker` process ever imports an LLM SDK.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.errors import CommandError
from cli.job_options import Options, takes_filter, takes_job_options

app = typer.Typer(
    name="tokenspool",
    help="The durable buffer between your code and the model. Settings are TOKENSPOOL_* environment variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")]
Url = Annotated[str, typer.Option(envvar="TOKENSPOOL_URL", help="URL of the API.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON: one document, or for lists and events one in each line.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print the answer while it is generated.")]
FollowBatch = Annotated[bool, typer.Option("--follow", "-f", help="Print its progress until it has ended.")]
JobIdentifier = Annotated[str, typer.Argument(metavar="JOB", help="Job id, as printed by submit.")]
JobIdentifiers = Annotated[
    list[str] | None,
    typer.Argument(metavar="[JOB]...", help="Job ids; without them, the jobs that meet the conditions."),
]
AllJobs = Annotated[bool, typer.Option("--all", help="All jobs, in place of conditions.")]
OtherTenant = Annotated[
    str | None, typer.Option("--tenant", help="Another tenant, or * for all; needs a key with the scope operator.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count the jobs that meet the conditions.")]
BatchIdentifier = Annotated[str, typer.Argument(metavar="BATCH", help="Batch id, as printed by batch submit.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="How many to print at most.")]

DEFAULT_URL = "http://127.0.0.1:8000"


def _print_version(wanted: bool) -> None:
    if wanted:
        from shared.version import version

        print(f"tokenspool {version()}")
        raise typer.Exit


@app.callback()
def tokenspool(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


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
@takes_job_options("job")
def submit(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    options: Options,
    follow: Follow = False,
    model: Annotated[str | None, typer.Option(help="Model to use. Default: the API's TOKENSPOOL_MODEL.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum length of the answer, in tokens.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Repeat a command with the same key and prompt to find its job instead of creating another."),
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a prompt and print the job's id or, with --follow, its answer."""
    from cli.submit import submit_prompt

    given = {"model": model, "max_tokens": max_tokens}
    submit_prompt(prompt, given, options, follow=follow, key=idempotency_key, as_json=as_json, url=url)


@app.command()
def follow(job_id: JobIdentifier, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Print a job's answer while it is generated. The exit code is 0 only if the job succeeded."""
    from cli.follow import follow_job

    follow_job(job_id, as_json=as_json, url=url)


jobs = typer.Typer(help="Jobs: find them, look at one, cancel it, run it again.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")


@jobs.command("list")
@takes_filter
def jobs_list(
    options: Options, tenant: OtherTenant = None, limit: Limit = 20, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Print jobs, newest first."""
    from cli.jobs import list_jobs

    list_jobs(options, tenant=tenant, limit=limit, as_json=as_json, url=url)


@jobs.command("show")
def jobs_show(job_id: JobIdentifier, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Print all about a job: its state, its times, its cost and its result."""
    from cli.jobs import show_job

    show_job(job_id, as_json=as_json, url=url)


@jobs.command("cancel")
@takes_filter
def jobs_cancel(
    options: Options,
    job_ids: JobIdentifiers = None,
    all_jobs: AllJobs = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """End jobs now, even if they run. A job that has ended does not change."""
    from cli.jobs import act

    act("cancel", job_ids or [], options, all_jobs=all_jobs, dry_run=dry_run, as_json=as_json, url=url)


@jobs.command("retry")
@takes_filter
def jobs_retry(
    options: Options,
    job_ids: JobIdentifiers = None,
    all_jobs: AllJobs = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit jobs that ended without success again. For single jobs, print the ids of the new ones."""
    from cli.jobs import act

    act("retry", job_ids or [], options, all_jobs=all_jobs, dry_run=dry_run, as_json=as_json, url=url)


@jobs.command("erase")
@takes_filter
def jobs_erase(
    options: Options,
    job_ids: JobIdentifiers = None,
    all_jobs: AllJobs = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Erase jobs that have ended: their prompts, events and results."""
    from cli.jobs import act

    act("erase", job_ids or [], options, all_jobs=all_jobs, dry_run=dry_run, as_json=as_json, url=url)


@jobs.command("operation")
def jobs_operation(
    operation_id: Annotated[str, typer.Argument(metavar="OPERATION", help="Id, as cancel, retry and erase print it.")],
    cancel: Annotated[bool, typer.Option("--cancel", help="End it. What was done stays.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Watch a cancel, retry or erase of many jobs until it has ended."""
    from cli.operations import watch_operation

    watch_operation(operation_id, cancel=cancel, as_json=as_json, url=url)


class _SubmitsFiles(TyperGroup):
    """`tokenspool batch FILE` is `tokenspool batch submit FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_file = bool(args) and args[0] not in self.commands and args[0] != "--help"
        return super().parse_args(ctx, ["submit", *args] if is_file else args)


batch = typer.Typer(cls=_SubmitsFiles, help="Batches: many requests under one id.", no_args_is_help=True)
app.add_typer(batch, name="batch")


@batch.command("submit")
@takes_job_options("batch")
def batch_submit(
    file: Annotated[Path, typer.Argument(help="File of requests, one JSON object per line: {custom_id, params}.")],
    options: Options,
    follow: FollowBatch = False,
    results: Annotated[Path | None, typer.Option(help="File for the results, one JSON object per line.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Repeat a command with the same key and file to find its batch instead of creating another."),
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a file of requests as a batch. With --follow or --results, the exit code is 0 only if all succeeded."""
    from cli.batch import run_batch

    run_batch(file, options, follow=follow, results=results, key=idempotency_key, as_json=as_json, url=url)


@batch.command("list")
def batch_list(tenant: OtherTenant = None, limit: Limit = 20, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Print batches, newest first."""
    from cli.batch import list_batches

    list_batches(tenant=tenant, limit=limit, as_json=as_json, url=url)


@batch.command("status")
def batch_status(
    batch_id: BatchIdentifier, follow: FollowBatch = False, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Print a batch's state and counts. With --follow, the exit code is 0 only if all its requests succeeded."""
    from cli.batch import show_batch

    show_batch(batch_id, follow=follow, as_json=as_json, url=url)


@batch.command("results")
def batch_results(
    batch_id: BatchIdentifier,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File. Default: standard output.")] = None,
    status: Annotated[str | None, typer.Option(help="Only those succeeded, failed, cancelled or expired.")] = None,
    custom_id: Annotated[list[str] | None, typer.Option(help="Only these requests.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write the results so far, in the order of the requests, one JSON object per line."""
    from cli.batch import write_results_of

    write_results_of(batch_id, {"status": status, "custom_id": custom_id or None}, output=output, url=url)


@batch.command("retry")
def batch_retry(
    batch_id: BatchIdentifier,
    retryable: Annotated[bool, typer.Option("--retryable", help="Only those whose error may pass.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit the requests that did not succeed again, as a new batch, and print its id."""
    from cli.batch import retry_batch

    retry_batch(batch_id, retryable=retryable, as_json=as_json, url=url)


@batch.command("cancel")
def batch_cancel(batch_id: BatchIdentifier, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """End all requests of a batch that have not ended. The results so far are kept."""
    from cli.batch import cancel_batch

    cancel_batch(batch_id, as_json=as_json, url=url)


@app.command()
def usage(
    first: Annotated[
        str | None, typer.Option("--from", help="First day, YYYY-MM-DD in UTC. Default: 7 days in all.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day, included. Default: today.")] = None,
    group_by: Annotated[
        str, typer.Option(help="Any of tenant, day, model, key and end_user, with commas; empty for one sum.")
    ] = "day,model",
    tenant: OtherTenant = None,
    end_user: Annotated[str | None, typer.Option(help="Only what was used for this end user.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print the calls, tokens and cost of the key's tenant."""
    from cli.usage import show_usage

    query = {"from": first, "to": last, "group_by": group_by, "tenant": tenant, "end_user": end_user}
    show_usage(query, as_json=as_json, url=url)


@app.command()
def limits(as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Print the limits of the key and its tenant, what is used of each, and when it is free again."""
    from cli.limits import show_limits

    show_limits(as_json=as_json, url=url)


@app.command()
def workers(as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Print the workers that live. Needs a key with the scope operator."""
    from cli.workers import list_workers

    list_workers(as_json=as_json, url=url)


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
    as_json: Json = False,
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
        as_json=as_json,
    )


@tenants.command("show")
def tenants_show(tenant: Tenant, as_json: Json = False) -> None:
    """Print a tenant's settings."""
    from cli.tenants import show_tenant

    show_tenant(tenant, as_json=as_json)


@tenants.command("list")
def tenants_list(as_json: Json = False) -> None:
    """Print all tenants that have settings."""
    from cli.tenants import list_tenants

    list_tenants(as_json=as_json)


@tenants.command("clear")
def tenants_clear(tenant: Tenant, as_json: Json = False) -> None:
    """Remove all settings of a tenant."""
    from cli.tenants import clear_tenant

    clear_tenant(tenant, as_json=as_json)


@tenants.command("erase")
def tenants_erase(
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Erase all that belongs to a tenant, its keys, usage and settings too. Safe to run again."""
    from cli.erase_tenant import erase_tenant
    from cli.tenants import check_tenant

    check_tenant(tenant)
    if not yes:
        typer.confirm(
            f"Erase all jobs and batches of {tenant}, running ones too, its keys, usage and settings?", abort=True
        )
    erase_tenant(tenant, as_json=as_json)


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
        typer.Option(help="submit, read, cancel, admin or operator; repeat for several. Default: the first three."),
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
    as_json: Json = False,
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
        as_json=as_json,
    )


@keys.command("list")
def keys_list(
    tenant: Annotated[str | None, typer.Option(help="Default: all tenants.")] = None, as_json: Json = False
) -> None:
    """Print the keys without their secrets; expired and revoked keys are listed for 90 more days."""
    from cli.api_keys import list_keys

    list_keys(tenant, as_json=as_json)


@keys.command("rotate")
def keys_rotate(
    key_id: KeyId,
    grace_s: Annotated[
        int, typer.Option(min=0, max=2_592_000, help="Seconds that the old secret stays valid; 0 revokes it.")
    ] = 86_400,
    as_json: Json = False,
) -> None:
    """Give a key a new secret and print it."""
    from cli.api_keys import rotate_key

    rotate_key(key_id, grace_s=grace_s, as_json=as_json)


@keys.command("revoke")
def keys_revoke(key_id: KeyId, as_json: Json = False) -> None:
    """Revoke a key. Every process refuses it within 5 s."""
    from cli.api_keys import revoke_key

    revoke_key(key_id, as_json=as_json)


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
