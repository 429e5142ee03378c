// The official client, as any program would make it: address and key come from OPENAI_BASE_URL and OPENAI_API_KEY.
import OpenAI, { toFile } from 'openai';

export const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
export const model = process.env.VERIFY_MODEL;
export const embeddingModel = process.env.VERIFY_EMBEDDING_MODEL;

export const weather = {
  name: 'get_weather',
  description: 'The weather in a city.',
  parameters: {
    type: 'object',
    properties: { city: { type: 'string' } },
    required: ['city'],
    additionalProperties: false,
  },
};

export const person = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
  additionalProperties: false,
};

export async function collect(stream) {
  const all = [];
  for await (const one of stream) all.push(one);
  return all;
}

/** What `read` gives once its status is one of `ends`. */
export async function until(read, ends) {
  const last = Date.now() + 180_000;
  for (;;) {
    const seen = await read();
    if (ends.includes(seen.status)) return seen;
    if (Date.now() > last) throw new Error(`still ${seen.status}`);
    await new Promise((wake) => setTimeout(wake, 250));
  }
}

export const put = async (text, name, purpose) => client.files.create({ file: await toFile(Buffer.from(text), name), purpose });
