// java.net.http.HttpClient as Spring and langchain4j use it: with its defaults, which ask for h2c.
// Prints one line a case: its name, a tab, and what came.

import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

public class JdkHttpClient {
    static final HttpClient client = HttpClient.newHttpClient();
    static String base;

    public static void main(String[] arguments) throws Exception {
        base = arguments[0];
        String message = message("Say hello.", false);
        say("post", "/v1/messages", "application/json", BodyPublishers.ofString(message));
        say("chunked post", "/v1/messages", "application/json",
                BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(message.getBytes(StandardCharsets.UTF_8))));
        String large = message("x".repeat(3_000_000), false);
        say("large post", "/v1/messages", "application/json", BodyPublishers.ofString(large));

        var streamed = client.send(request("/v1/messages", "application/json", BodyPublishers.ofString(message("Stream.", true))),
                BodyHandlers.ofLines());
        String names = streamed.body().filter(line -> line.startsWith("event: ")).map(line -> line.substring(7))
                .distinct().collect(Collectors.joining(","));
        print("stream", streamed.statusCode(), names);

        String line = "{\"custom_id\":\"%s\",\"params\":{\"model\":\"sim-t6-g1-f1\",\"prompt\":\"Say hello.\"}}\n";
        say("batch", "/v1/batches", "application/jsonl",
                BodyPublishers.ofString(line.formatted("a") + line.formatted("b")));

        // Each opens a connection of its own, and asks on it.
        var calls = IntStream.range(0, 5).mapToObj(number -> HttpClient.newHttpClient().sendAsync(
                request("/v1/messages", "application/json", BodyPublishers.ofString(message)), BodyHandlers.ofString()))
                .collect(Collectors.toList());
        CompletableFuture.allOf(calls.toArray(new CompletableFuture[0])).join();
        print("at once", 0, calls.stream().map(call -> String.valueOf(call.join().statusCode())).collect(Collectors.joining(",")));
    }

    static String message(String prompt, boolean isStreamed) {
        return ("{\"model\":\"sim-t6-g1-f1\",\"max_tokens\":100,\"stream\":%s,\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}")
                .formatted(isStreamed, prompt);
    }

    static HttpRequest request(String path, String contentType, BodyPublisher body) {
        return HttpRequest.newBuilder(URI.create(base + path)).header("Content-Type", contentType)
                .header("anthropic-version", "2023-06-01").POST(body).build();
    }

    static void say(String name, String path, String contentType, BodyPublisher body) throws Exception {
        var response = client.send(request(path, contentType, body), BodyHandlers.ofString());
        print(name, response.statusCode(), response.body());
    }

    static void print(String name, int status, String body) {
        System.out.println(name + "\t" + status + "\t" + body);
    }
}
