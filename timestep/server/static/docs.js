// The API's document, shown by Swagger UI. The version that is bundled reads OpenAPI 3.0, the document is 3.1: what
// differs is said here in the words of 3.0. A program should read /openapi.json.
'use strict';

function older(schema) {
  if (Array.isArray(schema)) return schema.map(older);
  if (schema === null || typeof schema !== 'object') return schema;
  const made = Object.fromEntries(Object.entries(schema).map(([name, value]) => [name, older(value)]));
  if (Array.isArray(made.anyOf)) {
    const some = made.anyOf.filter((one) => one.type !== 'null');
    if (some.length < made.anyOf.length) {
      made.nullable = true;
      made.anyOf = some;
      if (some.length === 1) {
        delete made.anyOf;
        return { ...some[0], ...made };
      }
    }
  }
  if ('const' in made) {
    made.enum = [made.const];
    delete made.const;
  }
  for (const [name, bound] of [['exclusiveMinimum', 'minimum'], ['exclusiveMaximum', 'maximum']]) {
    if (typeof made[name] === 'number') [made[bound], made[name]] = [made[name], true];
  }
  if (made.contentMediaType) made.format = 'binary';
  return made;
}

fetch('/openapi.json').then((response) => response.json()).then((document) => {
  const spec = { ...older(document), openapi: '3.0.3' };
  SwaggerUIBundle({ spec, dom_id: '#swagger-ui', deepLinking: true, defaultModelsExpandDepth: 0 });
});
