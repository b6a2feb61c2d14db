// One GET, bounded in bytes and in time as a whole: a server that drips counts as one that does not answer.

import http from "node:http";
import https from "node:https";

export function get(url, { headers = {}, timeout, most }) {
  return new Promise((resolve, reject) => {
    const { request } = new URL(url).protocol === "https:" ? https : http;
    // No redirect is followed: node:http follows none by itself.
    const asked = request(url, { headers, agent: false }, (response) => {
      const parts = [];
      let size = 0;
      response.on("data", (part) => {
        parts.push(part);
        size += part.length;
        if (size > most) fail(new Error(`the answer has more than ${most} bytes`));
      });
      response.on("error", fail);
      response.on("aborted", () => fail(new Error("the answer was cut off")));
      response.on("end", () => {
        clearTimeout(timer);
        const announced = response.headers["content-length"];
        if (!response.complete || (announced !== undefined && Number(announced) !== size)) return fail(new Error("the answer was cut off"));
        resolve({ status: response.statusCode, type: response.headers["content-type"] ?? "", body: Buffer.concat(parts) });
      });
    });
    const fail = (error) => {
      clearTimeout(timer);
      asked.destroy();
      reject(error);
    };
    const timer = setTimeout(() => fail(new Error("no answer in time")), timeout * 1000);
    asked.on("error", fail);
    asked.end();
  });
}
