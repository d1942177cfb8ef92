// Files to the API and from it. fetch cannot say how much of a body is sent, so the upload is an XMLHttpRequest.
import { ApiError, checked, headersOf } from "./api.js";

// Sends the file as the body. on(share) is called with the part that is sent, 0 to 1. Returns the response's JSON.
export function upload(path, file, headers, on) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headersOf(headers))) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => on(total ? loaded / total : 0);
    request.onerror = () => reject(new ApiError(0, { detail: "The upload broke off, and nothing of it is kept. Try again." }));
    request.onload = () => {
      const body = parsed(request.responseText);
      if (request.status < 300) resolve(body);
      else reject(new ApiError(request.status, body));
    };
    request.send(file);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

// Saves what the API returns as a file. A plain link could not send the key.
export async function download(path, name) {
  const response = await checked(await fetch(path, { headers: headersOf({}) }));
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// A new Idempotency-Key. crypto.randomUUID exists only on https and on localhost.
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
