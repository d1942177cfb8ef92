// What the playground sends, as programs. The texts of a user stand in them as literals of each language.

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const python = (value) => JSON.stringify(value);

// request: {model, prompt, max_tokens}; returns [[language, program], ...]
export function samplesOf(request, { hasKey }) {
  const url = location.origin;
  const { model = "claude-sonnet-4-6", prompt, max_tokens = 1024 } = request;
  return [
    [
      "curl",
      [
        `curl -N ${url}/v1/jobs \\`,
        ...(hasKey ? [`  -H "Authorization: Bearer $TOKENSPOOL_KEY" \\`] : []),
        "  -H 'Accept: text/event-stream' -H 'Idempotency-Key: a-name-of-yours' \\",
        `  --json ${shell(JSON.stringify(request))}`,
      ].join("\n"),
    ],
    [
      "Python",
      [
        "import httpx2",
        "",
        `client = httpx2.Client(base_url=${python(url)}${hasKey ? ', headers={"Authorization": f"Bearer {key}"}' : ""})`,
        `job = client.post("/v1/jobs", json=${python(request)}).json()`,
        'print(client.get(job["urls"]["self"], params={"wait": 60}, timeout=70).json()["result"]["text"])',
      ].join("\n"),
    ],
    [
      "Anthropic SDK",
      [
        "from anthropic import Anthropic",
        "",
        `client = Anthropic(base_url=${python(url)}, api_key=${hasKey ? "key" : '"none"'})`,
        "with client.messages.stream(",
        `    model=${python(model)},`,
        `    max_tokens=${max_tokens},`,
        `    messages=[{"role": "user", "content": ${python(prompt)}}],`,
        '    extra_headers={"Idempotency-Key": "a-name-of-yours"},',
        ") as stream:",
        "    for text in stream.text_stream:",
        '        print(text, end="", flush=True)',
      ].join("\n"),
    ],
  ];
}
